//! The hash in the names of what is made from a template. Its value is nobody's business but ours, its alphabet is upstream's
//! (`pkg/controller/controller_utils.go`, ComputeHash; apimachinery `util/rand`, SafeEncodeString).

use serde::Serialize;

use carob_client::ReconcileError;

/// No vowels, so that no words appear.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// The hash of a template; `collisions` counts the times that it met a namesake with another template.
pub(crate) fn template_hash(template: &impl Serialize, collisions: i32) -> Result<String, ReconcileError> {
    let mut bytes = serde_json::to_vec(template)
        .map_err(|cause| ReconcileError::Other { operation: "hash a template".to_owned(), cause: Box::new(cause) })?;
    if collisions != 0 {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    let hash = bytes.iter().fold(FNV_OFFSET, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(FNV_PRIME));
    Ok(hash.to_string().bytes().map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()] as char).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_templates_hash_alike_until_they_collide() {
        let hash = |template: &str, collisions| template_hash(&template, collisions).expect("a string serialises");
        assert_eq!(hash("a", 0), hash("a", 0));
        assert_ne!(hash("a", 0), hash("b", 0));
        assert_ne!(hash("a", 0), hash("a", 1));
        assert!(hash("a", 0).bytes().all(|byte| ALPHABET.contains(&byte)));
    }
}

//! Identifiers: random bytes from the kernel's generator, v4 UUIDs, and the suffix of generated names.

use ring::rand::{SecureRandom, SystemRandom};

/// The alphabet of generated names: no vowels and none of the digits 0, 1, 3 that read like letters, so no words appear
/// (apimachinery `pkg/util/rand`).
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `N` bytes of the kernel's random generator (getrandom(2)).
///
/// # Panics
/// When the kernel has no randomness to give, which it does not survive without either.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("getrandom(2) works on every supported kernel");
    bytes
}

pub fn random_u64() -> u64 {
    u64::from_le_bytes(random_bytes())
}

/// A random UUID, version 4 (RFC 9562), in its usual spelling.
pub fn uid() -> String {
    let mut bytes: [u8; 16] = random_bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `len` random characters as upstream appends them to `metadata.generateName`.
pub fn random_suffix(len: usize) -> String {
    let modulus = SUFFIX_ALPHABET.len() as u64;
    (0..len).map(|_| SUFFIX_ALPHABET[usize::try_from(random_u64() % modulus).unwrap_or(0)] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_has_the_version_and_variant_of_rfc_9562() {
        let uid = uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!("89ab".contains(&uid[19..20]), "{uid}");
        assert_ne!(uid, super::uid());
    }

    #[test]
    fn suffixes_stay_in_their_alphabet() {
        let suffix = random_suffix(200);
        assert!(suffix.bytes().all(|byte| SUFFIX_ALPHABET.contains(&byte)));
    }
}

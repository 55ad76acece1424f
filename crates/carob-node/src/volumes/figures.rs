//! How full the volumes behind claims are.

use std::time::Duration;

use super::Volumes;

/// How long one Pod's volumes may take to answer; those that do not are left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a file system says of a volume. Where it limits the volume, that is of the volume itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// The Pod.
    pub uid: String,
    /// The volume's name in the Pod.
    pub volume: String,
    pub claim: String,
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Volumes {
    /// The figures of all volumes that are directories, of Pods that run.
    pub async fn figures(&self) -> Vec<Figures> {
        let known: Vec<_> = self.known().iter().map(|(key, ready)| (key.clone(), ready.clone())).collect();
        let mut found = Vec::new();
        for ((uid, volume), ready) in known {
            let Some(claim) = ready.claim.filter(|_| !ready.device) else { continue };
            let said = async {
                match &ready.volume {
                    Some(of_driver) => self.csi.usage(&uid, of_driver).await,
                    None => None,
                }
            };
            if let Ok(Some(usage)) = tokio::time::timeout(PATIENCE, said).await {
                found.push(Figures {
                    uid,
                    volume,
                    claim,
                    capacity_bytes: usage.bytes,
                    available_bytes: usage.bytes_available,
                    used_bytes: usage.bytes_used,
                    inodes: usage.inodes,
                    inodes_free: usage.inodes_free,
                });
                continue;
            }
            let look = self.files.run(&uid, "look how full a volume is", move || rustix::fs::statvfs(&ready.path));
            // One that does not answer is told of where it is used.
            if let Ok(Ok(Ok(stat))) = tokio::time::timeout(PATIENCE, look).await {
                found.push(figures(uid, volume, claim, &stat));
            }
        }
        found
    }
}

fn figures(uid: String, volume: String, claim: String, stat: &rustix::fs::StatVfs) -> Figures {
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Figures {
        uid,
        volume,
        claim,
        capacity_bytes: bytes(stat.f_blocks),
        available_bytes: bytes(stat.f_bavail),
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_and_what_is_free_are_within_what_there_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let stat = rustix::fs::statvfs(dir.path()).expect("an answer");
        let figures = figures("u".to_owned(), "v".to_owned(), "c".to_owned(), &stat);
        assert!(figures.capacity_bytes >= figures.used_bytes && figures.capacity_bytes >= figures.available_bytes);
        assert!(figures.capacity_bytes > 0);
    }
}

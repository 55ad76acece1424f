use std::fmt;

use crate::v1;

/// Names the volume; never shows what opens it (`csi_secret` in the proto).
macro_rules! redacted {
    ($($message:ident $field:ident),* $(,)?) => {$(
        impl fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).field(stringify!($field), &self.$field).finish_non_exhaustive()
            }
        }
    )*};
}

redacted!(
    NodeStageVolumeRequest volume_id,
    NodePublishVolumeRequest volume_id,
    NodeExpandVolumeRequest volume_id,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_the_log() {
        let secrets = std::collections::BTreeMap::from([("key".to_owned(), "hunter2".to_owned())]);
        let request = v1::NodeStageVolumeRequest { volume_id: "volume-1".to_owned(), secrets, ..Default::default() };
        let shown = format!("{request:?}");
        assert!(shown.contains("volume-1") && !shown.contains("hunter2"), "{shown}");
    }
}

//! ImageLocality: prefers nodes that have the Pod's images, by size, scaled by how many nodes have them, so that one node
//! is not flooded for holding a rare image.

use super::Site;
use crate::model::PodTemplate;
use crate::profile::{MAX_SCORE, whole};
use crate::snapshot::NodeState;

const MIB: i64 = 1024 * 1024;
/// Below this an image is pulled so fast that it does not matter (image_locality.go minThreshold).
const MIN_BYTES: i64 = 23 * MIB;
/// More than this per container gives no more (image_locality.go maxContainerThreshold).
const MAX_BYTES_PER_CONTAINER: i64 = 1000 * MIB;

pub(crate) fn score(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> i64 {
    if pod.images.is_empty() || node.info.images.is_empty() {
        return 0;
    }
    let scaled = |image: &crate::model::Str| -> i64 {
        let Some(size) = node.info.image(image) else { return 0 };
        let spread = site.facts.nodes_with_image(image) as f64 / site.nodes as f64;
        whole(size.0 as f64 * spread)
    };
    let most = MAX_BYTES_PER_CONTAINER * pod.images.len() as i64;
    let sum = pod.images.iter().map(scaled).sum::<i64>().clamp(MIN_BYTES, most);
    MAX_SCORE * (sum - MIN_BYTES) / (most - MIN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Facts;
    use crate::model::Bytes;
    use crate::profile::Profile;
    use crate::testing::{node, plain, state};

    #[test]
    fn sizes_are_scaled_by_spread_and_clamped() {
        // image_locality_test.go: 300 MiB on one of two nodes, two containers.
        let mut info = node("n1", 1000, 1000);
        info.images =
            vec![("gcr.io/300:latest".into(), Bytes(300 * MIB)), ("gcr.io/4000:latest".into(), Bytes(4000 * MIB))];
        let mut facts = Facts::default();
        facts.replace_images(&[], &info.images);
        let profile = Profile::default_for("default-scheduler");
        let site = Site { profile: &profile, facts: &facts, nodes: 2 };
        let state = state(info, &[]);
        let cases: [(&[&str], i64); 3] = [
            (&["gcr.io/300:latest", "gcr.io/none:latest"], 6),
            (&["gcr.io/4000:latest"], 100),
            (&["gcr.io/none:latest"], 0),
        ];
        for (images, expected) in cases {
            let mut pod = plain(0, 0);
            pod.images = images.iter().map(|image| crate::model::Str::from(*image)).collect();
            assert_eq!(score(&pod, &state, site), expected, "{images:?}");
        }
    }
}

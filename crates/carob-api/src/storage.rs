//! What binders, schedulers, provisioners and nodes agree on about volumes and claims: names of annotations and finalizers
//! (k8s.io/component-helpers `storage/volume`), and which class is the default one.

/// On a claim: its binding is complete. Nobody but the binder sets it.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: the binder chose the other one, not the user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: the provisioner that made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the provisioner that has to make its volume, under the name of now and of before.
pub const STORAGE_PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// On a claim: the node that the scheduler chose for its first Pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The annotation that named the class of a claim or a volume before there was a field.
pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// On a StorageClass, with the value "true": the default one (`pkg/volume/util/storageclass.go`).
pub const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// Keeps a claim until no Pod uses it (`pkg/volume/util/finalizer.go`).
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume until no claim is bound to it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Keeps a volume until its provisioner has removed what it made, whoever deletes the object first.
pub const PROVISIONER_PROTECTION: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// Keeps a VolumeSnapshotContent until its snapshot is gone, and what it stands for is dealt with.
pub const CONTENT_PROTECTION: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";

/// The provisioner of volumes on a node's disk that carob has itself.
pub const LOCAL_PROVISIONER: &str = "carob.io/local";
/// On a Node: which pool of such volumes it has. Only there they can be made.
pub const LOCAL_POOL_LABEL: &str = "carob.io/volumes";
/// What the provisioner of a class is called whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Digits of the name's digest that the id of a node's pool begins with: 96 bits, and the id is a label's value.
const POOL_PREFIX_LEN: usize = 24;

/// What the id of a pool begins with that was made under this node's name. The API server lets a node say only of such a pool that
/// it is its own.
pub fn local_pool_prefix(node: &str) -> String {
    format!("{}-", &sha256(node)[..POOL_PREFIX_LEN])
}

/// The name of the volume that is made for a claim with this uid: one per claim, so that making it twice makes one.
pub fn provisioned_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

/// How contents name a local volume or a snapshot of one: by pool and name.
pub fn local_handle(pool: &str, name: &str) -> String {
    format!("{pool}/{name}")
}

/// The pool and the name in a handle of [`local_handle`].
pub fn parse_local_handle(handle: &str) -> Option<(&str, &str)> {
    handle.split_once('/').filter(|(pool, name)| !pool.is_empty() && !name.is_empty() && !name.contains('/'))
}

/// The name of the claim that an ephemeral volume of a Pod has (component-helpers `storage/ephemeral`).
pub fn ephemeral_claim(pod: &str, volume: &str) -> String {
    format!("{pod}-{volume}")
}

/// How a Node's status names a volume of a CSI driver (`pkg/volume/csi`, GetVolumeName below the plug-in's name).
pub fn csi_volume_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of the VolumeAttachment of a CSI driver's volume to a Node (`pkg/volume/csi`, getAttachmentName).
pub fn csi_attachment_name(driver: &str, handle: &str, node: &str) -> String {
    format!("csi-{}", sha256(&format!("{handle}{driver}{node}")))
}

/// In hexadecimal digits.
pub fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut hex = String::with_capacity(2 * digest.as_ref().len());
    for byte in digest.as_ref() {
        for digit in [byte >> 4, byte & 15] {
            hex.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    hex
}

/// Of several default classes the newest counts, and of equally old ones the first by name (`GetDefaultClass`).
pub fn default_class<T: Ord, N: Ord>(defaults: impl IntoIterator<Item = (T, N)>) -> Option<N> {
    let newest = defaults
        .into_iter()
        .max_by(|(left, left_name), (right, right_name)| left.cmp(right).then_with(|| right_name.cmp(left_name)));
    newest.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_are_named_as_upstream_names_them() {
        let name = csi_attachment_name("d.example", "handle", "node");
        assert_eq!(name, format!("csi-{}", sha256("handled.examplenode")));
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(csi_volume_name("d.example", "handle"), "kubernetes.io/csi/d.example^handle");
    }

    #[test]
    fn a_pools_id_tells_the_name_of_its_node() {
        let [one, two] = ["n1", "n2"].map(local_pool_prefix);
        assert_ne!(one, two);
        assert_eq!(one.len(), POOL_PREFIX_LEN + 1);
    }

    #[test]
    fn the_newest_default_class_counts() {
        assert_eq!(default_class([(1, "a"), (3, "c"), (3, "b"), (2, "d")]), Some("b"));
        assert_eq!(default_class::<u8, &str>([]), None);
    }
}

//! Images, as CRI's image service has them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use carob_cri::{Code, CriError, PullProgress, v1};
use carob_image::{
    Credentials, Digest, ImageId, ImageRecord, ImageStore, Progress, ProgressEvent, PullError, Reference,
    RemoveOutcome, StoreError, Usage,
};
use std::collections::BTreeMap;
use tokio::sync::watch;

use crate::runtime::Runtime;

/// What the runtime needs of an image store.
#[async_trait]
pub trait Images: Send + Sync {
    /// By name in any spelling, or by id.
    fn find(&self, name: &str) -> Option<Arc<ImageRecord>>;

    /// Unpacked layers, topmost first.
    fn layers(&self, id: &ImageId) -> Option<Vec<PathBuf>>;

    /// Counts as a use.
    fn touch(&self, id: &ImageId);

    fn list(&self) -> Vec<Arc<ImageRecord>>;

    fn usage(&self) -> Usage;

    async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<ImageRecord>, PullError>;

    async fn remove(&self, name: &str) -> Result<RemoveOutcome, StoreError>;
}

#[async_trait]
impl Images for ImageStore {
    fn find(&self, name: &str) -> Option<Arc<ImageRecord>> {
        self.get(name)
    }

    fn layers(&self, id: &ImageId) -> Option<Vec<PathBuf>> {
        self.layers(id)
    }

    fn touch(&self, id: &ImageId) {
        self.touch(id);
    }

    fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.list()
    }

    fn usage(&self) -> Usage {
        self.usage()
    }

    async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<ImageRecord>, PullError> {
        self.pull(reference, credentials, progress).await
    }

    async fn remove(&self, name: &str) -> Result<RemoveOutcome, StoreError> {
        self.remove(name).await
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> CriError {
    CriError::internal(carob_kit::chain(error).to_string())
}

fn name_of(image: Option<v1::ImageSpec>) -> Result<String, CriError> {
    let name = image.map(|image| image.image).unwrap_or_default();
    if name.is_empty() { Err(CriError::invalid_argument("the request names no image")) } else { Ok(name) }
}

fn image(record: &ImageRecord) -> v1::Image {
    let user = record.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (uid, username) = image_user(&user);
    v1::Image {
        id: record.id.to_string(),
        repo_tags: record.tags.clone(),
        repo_digests: record.digests.clone(),
        size: record.size_bytes,
        uid,
        username,
        spec: None,
        pinned: record.is_kept(),
    }
}

/// A number or a name, from an image's `user[:group]`; the empty user is number 0 (containerd `getUserFromImage`).
fn image_user(user: &str) -> (Option<v1::Int64Value>, String) {
    let user = user.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return (Some(v1::Int64Value { value: 0 }), String::new());
    }
    match user.parse::<i64>() {
        Ok(value) => (Some(v1::Int64Value { value }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// What CRI hands over, in the order in which containerd looks at it (`internal/cri/server/images`, `ParseAuth`).
fn credentials(auth: Option<v1::AuthConfig>) -> Result<Option<Credentials>, CriError> {
    let Some(auth) = auth else { return Ok(None) };
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::Basic { username: auth.username, password: auth.password }));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identity_token)));
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registry_token)));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    decode_auth(&auth.auth).map(Some).ok_or_else(|| CriError::invalid_argument("the auth field is not user:password"))
}

/// `user:password` in base64, as a docker configuration has it.
fn decode_auth(text: &str) -> Option<Credentials> {
    use base64::Engine;

    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Old clients pad with zeros.
    Some(Credentials::Basic { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// Adds up the steps of a pull.
struct ProgressTotals {
    layers: Mutex<BTreeMap<Digest, Layer>>,
    sender: watch::Sender<PullProgress>,
}

#[derive(Default)]
struct Layer {
    done_bytes: u64,
    total_bytes: u64,
    done: bool,
}

impl Progress for ProgressTotals {
    fn event(&self, event: ProgressEvent) {
        let mut layers = self.layers.lock().expect("no holder panics");
        match event {
            ProgressEvent::Resolved { layers: known } => {
                for (digest, total_bytes) in known {
                    layers.entry(digest).or_default().total_bytes = total_bytes;
                }
            }
            ProgressEvent::Present { layer } | ProgressEvent::Unpacked { layer } => {
                let layer = layers.entry(layer).or_default();
                layer.done_bytes = layer.total_bytes;
                layer.done = true;
            }
            ProgressEvent::Downloading { layer, done_bytes, total_bytes } => {
                let layer = layers.entry(layer).or_default();
                layer.done_bytes = done_bytes;
                layer.total_bytes = total_bytes;
            }
            ProgressEvent::Retrying { layer, .. } => layers.entry(layer).or_default().done_bytes = 0,
            ProgressEvent::Unpacking { .. } => return,
        }
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let totals = PullProgress {
            bytes_done: layers.values().map(|layer| layer.done_bytes).sum(),
            bytes_total: layers.values().map(|layer| layer.total_bytes).sum(),
            layers_done: count(layers.values().filter(|layer| layer.done).count()),
            layers_total: count(layers.len()),
        };
        drop(layers);
        self.sender.send_replace(totals);
    }
}

#[async_trait]
impl carob_cri::ImageService for Runtime {
    async fn list_images(&self, request: v1::ListImagesRequest) -> Result<v1::ListImagesResponse, CriError> {
        let wanted = request.filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let records = if wanted.is_empty() {
            self.config.images.list()
        } else {
            self.config.images.find(&wanted).into_iter().collect()
        };
        Ok(v1::ListImagesResponse { images: records.iter().map(|record| image(record)).collect() })
    }

    async fn image_status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, CriError> {
        let record = self.config.images.find(&name_of(request.image)?);
        Ok(v1::ImageStatusResponse { image: record.map(|record| image(&record)), info: BTreeMap::new() })
    }

    async fn pull_image(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, CriError> {
        self.pull_image_with_progress(request, watch::Sender::new(PullProgress::default())).await
    }

    async fn remove_image(&self, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse, CriError> {
        let name = name_of(request.image)?;
        // All names go with the image: that is what CRI asks for.
        let Some(record) = self.config.images.find(&name) else { return Ok(v1::RemoveImageResponse {}) };
        let id = record.id.to_string();
        let used = self.containers().iter().any(|container| container.record.borrow().image_id == id);
        if used {
            return Err(CriError::new(Code::FailedPrecondition, format!("image {name} is used by a container")));
        }
        self.config.images.remove(&id).await.map_err(|error| internal(&error))?;
        Ok(v1::RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _request: v1::ImageFsInfoRequest) -> Result<v1::ImageFsInfoResponse, CriError> {
        let usage = self.config.images.usage();
        let filesystem = |used: u64, inodes: u64, mountpoint: PathBuf| v1::FilesystemUsage {
            timestamp: self.now_ns(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: mountpoint.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: used }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        };
        let layers = self.layers_usage().await?;
        Ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(usage.bytes, usage.inodes, self.config.data_dir.join("images"))],
            container_filesystems: vec![filesystem(layers.bytes, layers.inodes, self.paths.layers())],
        })
    }

    async fn pull_image_with_progress(
        &self,
        request: v1::PullImageRequest,
        progress: watch::Sender<PullProgress>,
    ) -> Result<v1::PullImageResponse, CriError> {
        let name = name_of(request.image)?;
        let reference: Reference = name.parse().map_err(|error| {
            CriError::invalid_argument(carob_kit::chain(&error as &carob_image::ReferenceError).to_string())
        })?;
        let credentials = credentials(request.auth)?;
        let totals = Arc::new(ProgressTotals { layers: Mutex::default(), sender: progress });
        let pulled = self.config.images.pull(&reference, credentials.as_ref(), totals).await;
        let record = pulled.map_err(|error| internal(&error))?;
        Ok(v1::PullImageResponse { image_ref: record.id.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images_are_numbers_or_names() {
        let number = |value| Some(v1::Int64Value { value });
        let cases = [("", number(0), ""), ("0:0", number(0), ""), ("1000", number(1000), ""), ("www:www", None, "www")];
        for (user, uid, name) in cases {
            assert_eq!(image_user(user), (uid, name.to_owned()), "{user:?}");
        }
    }

    #[test]
    fn credentials_come_in_four_forms() {
        let basic = |username: &str, password: &str| Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        let auth = v1::AuthConfig::default();
        let cases = [
            (v1::AuthConfig { username: "u".into(), password: "p".into(), ..auth.clone() }, Some(basic("u", "p"))),
            (v1::AuthConfig { auth: "dTpwOnE=".into(), ..auth.clone() }, Some(basic("u", "p:q"))),
            (
                v1::AuthConfig { identity_token: "t".into(), ..auth.clone() },
                Some(Credentials::IdentityToken("t".into())),
            ),
            (
                v1::AuthConfig { registry_token: "t".into(), ..auth.clone() },
                Some(Credentials::RegistryToken("t".into())),
            ),
            (auth.clone(), None),
        ];
        for (auth, expected) in cases {
            assert_eq!(credentials(Some(auth)).expect("understood"), expected);
        }
        credentials(Some(v1::AuthConfig { auth: "!".into(), ..auth })).expect_err("not base64");
    }
}

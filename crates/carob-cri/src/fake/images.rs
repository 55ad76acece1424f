use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

use super::FakeRuntime;
use crate::v1::{
    Image, ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, Int64Value,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse,
};
use crate::{CriError, ImageService};

/// An image whose id follows from its name.
pub(super) fn image(name: &str) -> Image {
    static SIZE: AtomicU64 = AtomicU64::new(1000);
    Image {
        id: format!("sha256:{name}"),
        repo_tags: vec![name.to_owned()],
        size: SIZE.fetch_add(1, Ordering::Relaxed),
        uid: Some(Int64Value { value: 0 }),
        ..Image::default()
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self, _request: ListImagesRequest) -> Result<ListImagesResponse, CriError> {
        Ok(ListImagesResponse { images: self.lock().images.values().cloned().collect() })
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, CriError> {
        let name = request.image.unwrap_or_default().image;
        let image = self.lock().images.get(&name).cloned();
        Ok(ImageStatusResponse { image, ..ImageStatusResponse::default() })
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, CriError> {
        let name = request.image.unwrap_or_default().image;
        let user = request.auth.map(|auth| format!(" as {}", auth.username)).unwrap_or_default();
        self.note(format!("pull {name}{user}"));
        self.check(&format!("pull {name}"))?;
        self.add_image(&name);
        Ok(PullImageResponse { image_ref: format!("sha256:{name}") })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, CriError> {
        self.lock().images.remove(&request.image.unwrap_or_default().image);
        Ok(RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, CriError> {
        Ok(ImageFsInfoResponse::default())
    }
}

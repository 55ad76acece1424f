//! Names of the rpcs on the wire.

/// The path of an rpc of `RuntimeService`.
macro_rules! runtime {
    ($rpc:literal) => {
        concat!("/runtime.v1.RuntimeService/", $rpc)
    };
}

/// The path of an rpc of `ImageService`.
macro_rules! image {
    ($rpc:literal) => {
        concat!("/runtime.v1.ImageService/", $rpc)
    };
}

pub(crate) use {image, runtime};

/// Bytes of one message (`maxMsgSize`, cri-client `pkg/utils.go`).
pub(crate) const MESSAGE_LEN_MAX: usize = 16 << 20;

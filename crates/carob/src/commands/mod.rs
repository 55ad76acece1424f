//! The commands besides `carob server`.

pub(crate) mod image;

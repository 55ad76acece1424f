//! carob-image

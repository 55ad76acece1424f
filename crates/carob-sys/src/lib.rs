//! carob-sys

//! carob-runtime

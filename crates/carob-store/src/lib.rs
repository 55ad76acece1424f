//! carob-store

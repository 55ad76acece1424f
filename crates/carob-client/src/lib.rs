//! carob-client

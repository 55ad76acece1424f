//! carob-api

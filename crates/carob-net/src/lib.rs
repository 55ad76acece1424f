//! carob-net

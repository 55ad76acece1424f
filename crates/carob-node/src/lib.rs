//! carob-node

//! carob-cri

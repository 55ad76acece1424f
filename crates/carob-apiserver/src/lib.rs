//! carob-apiserver

//! carob-controllers

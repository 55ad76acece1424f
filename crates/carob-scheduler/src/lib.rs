//! carob-scheduler

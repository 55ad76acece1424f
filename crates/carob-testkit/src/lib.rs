//! carob-testkit

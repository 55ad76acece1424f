//! One way to print an error: its own words, then each cause, joined by colons.

use std::error::Error;
use std::fmt;

/// Displays an error followed by its sources: `open the store: read segment 3: permission denied`.
#[derive(Debug)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// See [`Chain`].
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open the store")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_their_effect() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error).to_string(), "open the store: disk on fire");
    }
}

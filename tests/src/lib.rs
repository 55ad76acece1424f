//! Black-box suites: the tests are in this crate's `tests/` folder and speak only kubectl and HTTP.

//! The Pod network over a real kernel, in throw-away network namespaces. Needs root.

mod lab;
mod lifecycle;
mod traffic;

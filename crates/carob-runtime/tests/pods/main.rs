//! Pods on this machine's kernel, as CRI's callers see them. Needs root and Debian's busybox-static.

mod containers;
mod restart;
mod streams;
mod support;

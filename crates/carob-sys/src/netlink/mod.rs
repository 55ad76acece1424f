//! Netlink without a daemon: requests are values, a batch of them is one system call, and the kernel has answered by
//! the time that call returns.
//!
//! rtnetlink and nfnetlink handle a request inside sendmsg(2), so nothing here ever waits and no task has to read the
//! socket. [`route`] makes the requests for links, addresses and routes, [`tunnel`] those for VXLAN, [`crate::nft`] those for
//! nftables, [`conntrack`] those for connections.

pub mod conntrack;
mod decode;
mod encode;
mod netns;
pub mod route;
mod socket;
pub mod tunnel;

pub use decode::{Attribute, Attributes, Reply};
pub use encode::Request;
pub(crate) use encode::{Writer, flag};
pub use netns::{current_netns, in_netns, new_netns};
pub use socket::{NetlinkError, Protocol, Socket};

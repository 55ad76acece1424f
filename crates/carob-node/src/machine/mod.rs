//! The machine as a Node: what it has, how it is, and telling the API so.

pub mod facts;
pub mod lease;
pub mod news;
pub mod object;
pub mod register;

//! Watches: an operator names groups by patterns, and is told what happens in each, those to come
//! included, on one connection.
//!
//! A watch is one eventfd of the client's, with a registration for each specification on each group
//! that matches. So it counts against its client as any registrations do, and ends with the eventfd,
//! or with the connection. What is told goes through a queue of the watch's own ([`member`]); the
//! agent waits for no reader.

mod choice;
mod growth;
mod hub;
mod late;
mod member;
mod noted;
mod refusals;
mod request;
mod stream;

pub(super) use hub::Hub;
pub(super) use request::Watch;
pub(super) use stream::follow;

//! DNS messages (RFC 1035, RFC 6891): from bytes to one question, and from records to bytes that fit.

use hickory_resolver::proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder};

/// A longer question is not answered: none is, since a name ends at 255 bytes (RFC 1035, 3.1).
pub(crate) const QUERY_BYTES_MAX: usize = 4096;
/// What a client without EDNS takes over UDP (RFC 1035, 4.2.1).
const UDP_BYTES_DEFAULT: u16 = 512;
/// What is sent over UDP at most: more may be cut into fragments on the way, which get lost (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// One question, and what has to be known to answer it.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) query: Query,
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    edns: Option<Edns>,
    transport: Transport,
}

/// What to do with a message.
#[derive(Debug)]
pub(crate) enum Read {
    /// It is no question. Answering it could go on forever.
    Ignore,
    /// It is refused with these bytes.
    Refuse(Vec<u8>),
    Ask(Box<Question>),
}

/// The sections of an answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) authoritative: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

pub(crate) fn read(bytes: &[u8], transport: Transport) -> Read {
    let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Read::Ignore };
    let metadata = header.metadata;
    if metadata.message_type != MessageType::Query {
        return Read::Ignore;
    }
    let refuse = |code| {
        let mut message = Message::error_msg(metadata.id, metadata.op_code, code);
        message.metadata.recursion_desired = metadata.recursion_desired;
        message.to_vec().map_or(Read::Ignore, Read::Refuse)
    };
    if metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    if bytes.len() > QUERY_BYTES_MAX || header.counts.queries != 1 {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
    let Some(query) = message.queries.into_iter().next() else { return refuse(ResponseCode::FormErr) };
    let question = Question {
        query,
        id: metadata.id,
        recursion_desired: metadata.recursion_desired,
        checking_disabled: metadata.checking_disabled,
        edns: message.edns,
        transport,
    };
    match question.refusal() {
        Some(code) => question.refuse(code).map_or(Read::Ignore, Read::Refuse),
        None => Read::Ask(Box::new(question)),
    }
}

impl Question {
    /// Why the question is not even looked at.
    fn refusal(&self) -> Option<ResponseCode> {
        if self.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Some(ResponseCode::BADVERS);
        }
        if self.query.query_class() != DNSClass::IN {
            return Some(ResponseCode::Refused);
        }
        match self.query.query_type() {
            RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
            RecordType::ANY => Some(ResponseCode::NotImp),
            _ => None,
        }
    }

    pub(crate) fn refuse(&self, code: ResponseCode) -> Option<Vec<u8>> {
        self.write(Answer { code, ..Answer::default() })
    }

    /// The answer as bytes. One that does not fit into a datagram says so and holds nothing else: the client asks again
    /// over TCP. `None` if there is something in it that no message can hold.
    pub(crate) fn write(&self, answer: Answer) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = answer.authoritative;
        message.metadata.response_code = answer.code;
        message.queries.push(self.query.clone());
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        message.additionals = answer.additionals;
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX).set_dnssec_ok(asked.flags().dnssec_ok);
            edns.set_rcode_high(answer.code.high());
            message.set_edns(edns);
        }
        let mut bytes = message.to_vec().ok()?;
        if bytes.len() > self.bytes_max() && !message.additionals.is_empty() {
            // They only save a question.
            message.additionals.clear();
            bytes = message.to_vec().ok()?;
        }
        if bytes.len() > self.bytes_max() {
            bytes = message.truncate().to_vec().ok()?;
        }
        Some(bytes)
    }

    fn bytes_max(&self) -> usize {
        match self.transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let asked = self.edns.as_ref().map_or(UDP_BYTES_DEFAULT, Edns::max_payload);
                usize::from(asked.clamp(UDP_BYTES_DEFAULT, UDP_BYTES_MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_resolver::proto::rr::rdata::A;
    use hickory_resolver::proto::rr::{Name, RData};
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn question(message: &Message, transport: Transport) -> Question {
        match read(&message.to_vec().unwrap(), transport) {
            Read::Ask(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(bytes: &[u8]) -> ResponseCode {
        match read(bytes, Transport::Udp) {
            Read::Refuse(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        }
    }

    fn addresses(count: u32) -> Vec<Record> {
        let name = Name::from_ascii("many.test.").unwrap();
        (0..count).map(|n| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::from(n))))).collect()
    }

    #[test]
    fn what_does_not_fit_is_truncated_over_udp_and_whole_over_tcp() {
        let mut with_edns = query("many.test.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(65_000);
        with_edns.set_edns(edns);
        let plain = query("many.test.", RecordType::A);
        for (message, transport, count, kept) in [
            (&plain, Transport::Udp, 20, 20),
            (&plain, Transport::Udp, 40, 0),
            (&with_edns, Transport::Udp, 60, 60),
            (&with_edns, Transport::Udp, 90, 0),
            (&plain, Transport::Tcp, 1000, 1000),
        ] {
            let answer = Answer { answers: addresses(count), ..Answer::default() };
            let bytes = question(message, transport).write(answer).unwrap();
            let written = Message::from_vec(&bytes).unwrap();
            assert_eq!((written.answers.len(), written.metadata.truncation), (kept, kept == 0), "{count}");
            assert_eq!(written.metadata.id, message.metadata.id);
            assert_eq!(written.edns.is_some(), message.edns.is_some());
        }
    }

    #[test]
    fn what_is_no_question_is_ignored_or_refused() {
        assert!(matches!(read(&[], Transport::Udp), Read::Ignore));
        assert!(matches!(read(&[1; 11], Transport::Udp), Read::Ignore));
        let response = Message::response(7, OpCode::Query).to_vec().unwrap();
        assert!(matches!(read(&response, Transport::Udp), Read::Ignore), "an answer to an answer would go on forever");
        assert_eq!(refused(&Message::query().to_vec().unwrap()), ResponseCode::FormErr);
        let mut two = query("a.test.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert_eq!(refused(&two.to_vec().unwrap()), ResponseCode::FormErr);
        let mut update = query("a.test.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(refused(&update.to_vec().unwrap()), ResponseCode::NotImp);
        assert_eq!(refused(&query("a.test.", RecordType::AXFR).to_vec().unwrap()), ResponseCode::Refused);
        let mut chaos = query("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(refused(&chaos.to_vec().unwrap()), ResponseCode::Refused);
        let mut long = query("a.test.", RecordType::A).to_vec().unwrap();
        long.resize(QUERY_BYTES_MAX + 1, 0);
        assert_eq!(refused(&long), ResponseCode::FormErr);
    }

    #[test]
    fn a_name_that_points_at_itself_is_refused() {
        // A header with one question whose name is a pointer to its own place, byte 12 (RFC 1035, 4.1.4).
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1];
        assert_eq!(refused(&bytes), ResponseCode::FormErr);
        // Two that point at each other.
        bytes.splice(12..14, [0xc0, 14, 0xc0, 12]);
        assert_eq!(refused(&bytes), ResponseCode::FormErr);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Read::Ask(question) = read(&bytes, Transport::Udp) {
                question.write(Answer::default());
            }
        }

        #[test]
        fn a_question_with_bytes_changed_is_read_without_harm(at in 0usize..40, to in any::<u8>()) {
            let mut bytes = query("a.b.c.default.svc.cluster.local.", RecordType::SRV).to_vec().unwrap();
            let len = bytes.len();
            bytes[at % len] = to;
            if let Read::Ask(question) = read(&bytes, Transport::Udp) {
                question.write(Answer { answers: addresses(100), ..Answer::default() });
            }
        }
    }
}

//! Decides what becomes of an Event: a new object, one more of an old one, or nothing.
//!
//! Facts: client-go `tools/record/events_cache.go`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::recent::Recent;

/// Objects, sources and messages that are remembered, each (maxLruCacheEntries).
const REMEMBERED_MAX: usize = 4096;
/// Events that differ by message alone, after which they are combined (defaultAggregateMaxEvents).
const ALIKE_MAX: usize = 10;
/// Time without another alike event, after which counting starts afresh (defaultAggregateIntervalInSeconds).
const ALIKE_WITHIN: Duration = Duration::from_secs(600);
/// Events about one object from one source in a burst (defaultSpamBurst), and the time that gives one back (defaultSpamQPS).
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
const COMBINED_PREFIX: &str = "(combined from similar events): ";

/// What to do with an event. The event is whole in both cases, since the object that a patch is for may have expired.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Create(Event),
    /// Raise count, last time and message of the Event of that name.
    Count(Event),
    /// The object has had its share of events.
    Drop,
}

pub(super) struct Correlator {
    alike: Recent<Alike>,
    seen: Recent<Seen>,
    budgets: Recent<Budget>,
}

struct Alike {
    messages: Vec<u64>,
    last: Duration,
}

struct Seen {
    name: String,
    first: Option<Time>,
    count: i32,
}

struct Budget {
    tokens: f64,
    filled: Duration,
}

impl Correlator {
    pub(super) fn new() -> Self {
        Self {
            alike: Recent::new(REMEMBERED_MAX),
            seen: Recent::new(REMEMBERED_MAX),
            budgets: Recent::new(REMEMBERED_MAX),
        }
    }

    pub(super) fn correlate(&mut self, event: Event, now: Timestamp, monotonic: Duration) -> Verdict {
        let object = object_key(&event);
        let (event, key) = self.combine(event, object, now, monotonic);
        let seen = self.seen.entry(key, || Seen { name: String::new(), first: None, count: 0 });
        seen.count = seen.count.saturating_add(1);
        let verdict = if seen.count > 1 {
            let mut event = event;
            event.metadata.name = Some(seen.name.clone());
            event.first_timestamp = seen.first.clone();
            event.count = Some(seen.count);
            Verdict::Count(event)
        } else {
            seen.name = event.metadata.name.clone().unwrap_or_default();
            seen.first = event.first_timestamp.clone();
            Verdict::Create(event)
        };
        if self.spend(object, monotonic) { verdict } else { Verdict::Drop }
    }

    /// Turns the tenth of a row of alike events, and those that follow, into one that stands for them all.
    fn combine(&mut self, event: Event, object: u64, now: Timestamp, monotonic: Duration) -> (Event, u64) {
        let message = hash(&event.message);
        let alike_key = hash(&(object, &event.type_, &event.reason));
        let alike = self.alike.entry(alike_key, || Alike { messages: Vec::new(), last: monotonic });
        if monotonic.saturating_sub(alike.last) > ALIKE_WITHIN {
            alike.messages.clear();
        }
        alike.last = monotonic;
        if !alike.messages.contains(&message) {
            alike.messages.push(message);
        }
        if alike.messages.len() < ALIKE_MAX {
            let key = hash(&(alike_key, message, &event.involved_object.field_path));
            return (event, key);
        }
        alike.messages.pop();
        let time = Some(Time(now));
        let mut combined = event;
        combined.metadata.name = Some(event_name(combined.involved_object.name.as_deref().unwrap_or_default(), now));
        combined.message = Some(format!("{COMBINED_PREFIX}{}", combined.message.unwrap_or_default()));
        combined.first_timestamp = time.clone();
        combined.last_timestamp = time;
        (combined, alike_key)
    }

    fn spend(&mut self, object: u64, monotonic: Duration) -> bool {
        let budget = self.budgets.entry(object, || Budget { tokens: BURST, filled: monotonic });
        let refilled = monotonic.saturating_sub(budget.filled).as_secs_f64() / REFILL.as_secs_f64();
        budget.tokens = (budget.tokens + refilled).min(BURST);
        budget.filled = monotonic;
        let affordable = budget.tokens >= 1.0;
        if affordable {
            budget.tokens -= 1.0;
        }
        affordable
    }
}

/// Names are made unique by the time in nanoseconds, as upstream's are.
pub(super) fn event_name(object: &str, now: Timestamp) -> String {
    format!("{object}.{:x}", now.as_nanosecond())
}

/// The source and the object that an event is about.
fn object_key(event: &Event) -> u64 {
    let (source, object) = (event.source.as_ref(), &event.involved_object);
    hash(&(
        source.map(|source| (&source.component, &source.host)),
        (&object.kind, &object.namespace, &object.name, &object.uid, &object.api_version),
    ))
}

/// Keys are hashes, so that remembering thousands of long messages costs bytes. A collision would count two events as one.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn event(object: &str, message: &str) -> Event {
        Event {
            involved_object: ObjectReference { name: Some(object.to_owned()), ..Default::default() },
            message: Some(message.to_owned()),
            reason: Some("BackOff".to_owned()),
            count: Some(1),
            ..Default::default()
        }
    }

    fn show(verdict: Verdict) -> String {
        let text = |event: Event| format!("{} {}", event.count.unwrap_or(0), event.message.unwrap_or_default());
        match verdict {
            Verdict::Create(event) => format!("create {}", text(event)),
            Verdict::Count(event) => format!("count {}", text(event)),
            Verdict::Drop => "drop".to_owned(),
        }
    }

    struct Bench {
        correlator: Correlator,
        at: Duration,
    }

    impl Bench {
        fn new() -> Self {
            Self { correlator: Correlator::new(), at: Duration::ZERO }
        }

        fn see(&mut self, object: &str, message: &str) -> String {
            let now = Timestamp::UNIX_EPOCH.checked_add(self.at).expect("in range");
            show(self.correlator.correlate(event(object, message), now, self.at))
        }
    }

    #[test]
    fn the_same_event_is_counted_on_one_object() {
        let mut bench = Bench::new();
        assert_eq!(bench.see("a", "x"), "create 1 x");
        assert_eq!(bench.see("a", "x"), "count 2 x");
        assert_eq!(bench.see("a", "x"), "count 3 x");
        assert_eq!(bench.see("b", "x"), "create 1 x", "another object");
    }

    #[test]
    fn the_tenth_message_of_a_reason_begins_a_combined_event() {
        let mut bench = Bench::new();
        for number in 1..10 {
            assert_eq!(bench.see("a", &format!("m{number}")), format!("create 1 m{number}"));
        }
        assert_eq!(bench.see("a", "m10"), "create 1 (combined from similar events): m10");
        assert_eq!(bench.see("a", "m11"), "count 2 (combined from similar events): m11");
        bench.at += ALIKE_WITHIN + Duration::from_secs(1);
        assert_eq!(bench.see("a", "m12"), "create 1 m12", "a pause starts counting afresh");
    }

    #[test]
    fn an_object_has_a_burst_of_25_and_one_more_every_five_minutes() {
        let mut bench = Bench::new();
        for _ in 0..25 {
            assert_ne!(bench.see("a", "x"), "drop");
        }
        assert_eq!(bench.see("a", "x"), "drop");
        assert_eq!(bench.see("b", "x"), "create 1 x", "another object has its own budget");
        bench.at += REFILL;
        assert_eq!(bench.see("a", "x"), "count 27 x", "what was dropped is counted");
        assert_eq!(bench.see("a", "x"), "drop");
    }

    #[test]
    fn names_end_in_the_time_in_hexadecimal_nanoseconds() {
        let now = Timestamp::from_nanosecond(0x17f3_a1b2_c3d4).expect("in range");
        assert_eq!(event_name("web-0", now), "web-0.17f3a1b2c3d4");
    }
}

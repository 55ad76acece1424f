//! What clients of several servers saw, and whether one store can have shown it to them.
//!
//! Each key is a register whose versions have revisions, so that there is no order to be searched for: [`check`] takes the order of
//! revisions for the order of writes, and says where what clients saw contradicts it. Pure.
//!
//! | what holds | how it would break |
//! |---|---|
//! | a revision is one version of one key; a value is written once | a write is made twice, a revision is issued twice |
//! | a write that names a version replaces that version | a lost update |
//! | what was acknowledged is seen by whoever asks later | a lost write, a stale read |
//! | what was refused is never seen | a conflict that was none |
//! | a watch shows every version after where it began, once, in order | a gap or a repeat when it resumes |
//! | a list shows every key's latest version of its revision | a list of a mixed state |

pub mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use record::{Outcome, Record, Version};

/// Contradictions that are listed; more of them tell nothing new.
const FAULTS_MAX: usize = 20;
/// The values that are there without a client's having written them begin so.
pub const GIVEN: &str = "given";

/// Every contradiction between what clients saw, as text. Records of one watcher are in the order in which it saw them.
pub fn check(records: &[Record]) -> Vec<String> {
    let mut faults = Vec::new();
    let versions = Versions::collect(records, &mut faults);
    versions.check_writes(records, &mut faults);
    check_real_time(records, &mut faults);
    for (watcher, seen) in by_watcher(records) {
        versions.check_watch(watcher, &seen, &mut faults);
    }
    faults.truncate(FAULTS_MAX);
    faults
}

/// The versions that anyone saw.
#[derive(Default)]
struct Versions<'a> {
    /// By key and revision.
    of_key: BTreeMap<&'a str, BTreeMap<u64, &'a str>>,
    /// By revision.
    all: BTreeMap<u64, &'a str>,
}

impl<'a> Versions<'a> {
    fn collect(records: &'a [Record], faults: &mut Vec<String>) -> Self {
        let mut versions = Self::default();
        for record in records {
            match record {
                Record::Read { key, version, .. } | Record::Event { key, version, .. } => {
                    versions.add(key, version.revision, &version.value, faults);
                }
                Record::Write { key, value, outcome: Outcome::Done { revision }, .. } => {
                    versions.add(key, *revision, value, faults);
                }
                Record::List { versions: listed, .. } => {
                    for (key, version) in listed {
                        versions.add(key, version.revision, &version.value, faults);
                    }
                }
                Record::Write { .. } | Record::Progress { .. } => {}
            }
        }
        versions
    }

    fn add(&mut self, key: &'a str, revision: u64, value: &'a str, faults: &mut Vec<String>) {
        if *self.all.entry(revision).or_insert(key) != key {
            faults.push(format!("revision {revision} is one of {key} and one of {}", self.all[&revision]));
        }
        let known = self.of_key.entry(key).or_default();
        let first = *known.entry(revision).or_insert(value);
        if first != value {
            faults.push(format!("{key} at revision {revision} is {first} and {value}"));
        }
    }

    /// Whether each version is the work of one write, and each write replaced what it was to replace.
    fn check_writes(&self, records: &[Record], faults: &mut Vec<String>) {
        let mut writers: HashMap<(&str, &str), (u64, &Outcome)> = HashMap::new();
        for record in records {
            if let Record::Write { key, value, expected, outcome, .. } = record {
                writers.insert((key, value), (*expected, outcome));
            }
        }
        for (key, versions) in &self.of_key {
            let mut places: BTreeMap<&str, u64> = BTreeMap::new();
            let mut before: Option<u64> = None;
            for (revision, value) in versions {
                if let Some(other) = places.insert(value, *revision) {
                    faults.push(format!("{key}: {value} was written at {other} and at {revision}"));
                }
                match writers.get(&(*key, *value)) {
                    None if value.starts_with(GIVEN) => {}
                    None => faults.push(format!("{key} is {value} at {revision}, which nobody wrote")),
                    Some((_, Outcome::Refused)) => {
                        faults.push(format!("{key} is {value} at {revision}, though the write was refused"));
                    }
                    Some((expected, _)) if before.is_some_and(|before| before > *expected) => faults.push(format!(
                        "{key}: {value} at {revision} was to replace {expected}, and replaced {}",
                        before.unwrap_or_default()
                    )),
                    Some((expected, _)) if expected >= revision => {
                        faults.push(format!("{key}: {value} has revision {revision} and was to replace {expected}"));
                    }
                    Some(_) => {}
                }
                before = Some(*revision);
            }
        }
    }

    /// Whether a watch has shown all there was from where it began, in order.
    fn check_watch(&self, watcher: &str, seen: &[&Record], faults: &mut Vec<String>) {
        let mut at: Option<u64> = None;
        for record in seen {
            match record {
                Record::List { revision, versions, .. } => {
                    self.check_list(watcher, *revision, versions, faults);
                    if at.is_some_and(|at| at > *revision) {
                        faults
                            .push(format!("{watcher} listed {revision} after it had seen {}", at.unwrap_or_default()));
                    }
                    at = Some(*revision);
                }
                Record::Event { key, version, .. } => {
                    let revision = version.revision;
                    match at {
                        None => faults.push(format!("{watcher} saw {key} at {revision} before it listed")),
                        Some(at) if revision <= at => {
                            faults.push(format!("{watcher} saw {key} at {revision} when it had seen {at}"));
                        }
                        Some(at) => self.check_gap(watcher, at, revision, faults),
                    }
                    at = at.max(Some(revision));
                }
                Record::Progress { revision, .. } => {
                    if let Some(at) = at {
                        self.check_gap(watcher, at, revision.saturating_add(1), faults);
                    }
                    at = at.max(Some(*revision));
                }
                Record::Read { .. } | Record::Write { .. } => {}
            }
        }
        match (at, self.all.last_key_value()) {
            (Some(at), Some((last, key))) if at < *last => {
                faults.push(format!("{watcher} ended at {at} and has not seen {key} at {last}"));
            }
            _ => {}
        }
    }

    /// Versions after `at` and before `next` were not shown.
    fn check_gap(&self, watcher: &str, at: u64, next: u64, faults: &mut Vec<String>) {
        let first = at.saturating_add(1);
        if first >= next {
            return;
        }
        for (missed, key) in self.all.range(first..next) {
            faults.push(format!("{watcher} was not shown {key} at {missed}, between {at} and {next}"));
        }
    }

    fn check_list(&self, watcher: &str, at: u64, listed: &BTreeMap<String, Version>, faults: &mut Vec<String>) {
        for (key, versions) in &self.of_key {
            let expected = versions.range(..=at).next_back().map(|(revision, _)| *revision);
            let found = listed.get(*key).map(|version| version.revision);
            if expected != found {
                faults.push(format!("{watcher} listed {key} of {found:?} at {at}, where it is of {expected:?}"));
            }
        }
    }
}

/// Whether whoever asked after an answer was given to anyone saw at least as much.
fn check_real_time(records: &[Record], faults: &mut Vec<String>) {
    let calls: Vec<Call<'_>> = records.iter().filter_map(Call::of).collect();
    let mut by_answer: Vec<&Call<'_>> = calls.iter().collect();
    by_answer.sort_by_key(|call| call.returned);
    let mut by_question: Vec<&Call<'_>> = calls.iter().collect();
    by_question.sort_by_key(|call| call.invoked);
    let mut answered = by_answer.into_iter().peekable();
    // What had been seen of each key, and of all, before the moment that is looked at.
    let mut seen: HashMap<&str, u64> = HashMap::new();
    let mut seen_of_any = 0;
    for call in by_question {
        while let Some(earlier) = answered.next_if(|earlier| earlier.returned < call.invoked) {
            if let Some(key) = earlier.key {
                let newest = seen.entry(key).or_default();
                *newest = earlier.revision.max(*newest);
            }
            seen_of_any = earlier.revision.max(seen_of_any);
        }
        let (known, what) = match call.key {
            Some(key) => (seen.get(key).copied().unwrap_or(0), key),
            None => (seen_of_any, "a list"),
        };
        let is_late = if call.is_write { call.revision <= known } else { call.revision < known };
        if is_late {
            let (who, revision) = (call.who, call.revision);
            faults.push(format!(
                "{who} was answered {what} at {revision}, when {known} had been answered before it asked"
            ));
        }
    }
}

/// Whoever was answered with a revision.
struct Call<'a> {
    who: &'a str,
    /// `None` for a list of all.
    key: Option<&'a str>,
    is_write: bool,
    revision: u64,
    invoked: u64,
    returned: u64,
}

impl<'a> Call<'a> {
    fn of(record: &'a Record) -> Option<Self> {
        Some(match record {
            Record::Read { client, key, invoked, returned, version } => Self {
                who: client,
                key: Some(key),
                is_write: false,
                revision: version.revision,
                invoked: *invoked,
                returned: *returned,
            },
            Record::Write { client, key, invoked, returned, outcome: Outcome::Done { revision }, .. } => Self {
                who: client,
                key: Some(key),
                is_write: true,
                revision: *revision,
                invoked: *invoked,
                returned: *returned,
            },
            Record::List { watcher, invoked, returned, revision, .. } => Self {
                who: watcher,
                key: None,
                is_write: false,
                revision: *revision,
                invoked: *invoked,
                returned: *returned,
            },
            Record::Write { .. } | Record::Event { .. } | Record::Progress { .. } => return None,
        })
    }
}

fn by_watcher(records: &[Record]) -> BTreeMap<&str, Vec<&Record>> {
    let mut watchers: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        if let Record::List { watcher, .. } | Record::Event { watcher, .. } | Record::Progress { watcher, .. } = record
        {
            watchers.entry(watcher).or_default().push(record);
        }
    }
    watchers
}

/// Pods that were started more than once, by the lines that each wrote when it started.
pub fn started_twice(lines: &str) -> BTreeSet<&str> {
    let mut seen = BTreeSet::new();
    lines.lines().filter(|line| !line.is_empty() && !seen.insert(*line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(revision: u64, value: &str) -> Version {
        Version { revision, value: value.to_owned() }
    }

    fn write(key: &str, at: (u64, u64), value: &str, expected: u64, outcome: Outcome) -> Record {
        let (client, key, value) = ("writer".to_owned(), key.to_owned(), value.to_owned());
        Record::Write { client, key, invoked: at.0, returned: at.1, value, expected, outcome }
    }

    fn read(key: &str, at: (u64, u64), revision: u64, value: &str) -> Record {
        let (client, key) = ("reader".to_owned(), key.to_owned());
        Record::Read { client, key, invoked: at.0, returned: at.1, version: version(revision, value) }
    }

    fn list(at: (u64, u64), revision: u64, versions: &[(&str, u64, &str)]) -> Record {
        let versions = versions.iter().map(|(key, revision, value)| ((*key).to_owned(), version(*revision, value)));
        Record::List {
            watcher: "watcher".to_owned(),
            invoked: at.0,
            returned: at.1,
            revision,
            versions: versions.collect(),
        }
    }

    fn event(key: &str, revision: u64, value: &str) -> Record {
        Record::Event { watcher: "watcher".to_owned(), key: key.to_owned(), version: version(revision, value) }
    }

    fn progress(revision: u64) -> Record {
        Record::Progress { watcher: "watcher".to_owned(), revision }
    }

    /// A key that two writers change, one of them without an answer, and a watch that sees it all.
    fn sound() -> Vec<Record> {
        vec![
            list((0, 1), 3, &[("a", 2, "given")]),
            write("a", (2, 4), "one", 2, Outcome::Done { revision: 4 }),
            read("a", (5, 6), 4, "one"),
            write("a", (5, 9), "two", 4, Outcome::Unknown),
            write("a", (5, 7), "three", 2, Outcome::Refused),
            read("a", (8, 10), 7, "two"),
            event("a", 4, "one"),
            event("a", 7, "two"),
            progress(8),
            write("a", (11, 12), "four", 7, Outcome::Done { revision: 9 }),
            event("a", 9, "four"),
        ]
    }

    #[track_caller]
    fn fails(records: &[Record], said: &str) {
        let faults = check(records);
        assert!(faults.iter().any(|fault| fault.contains(said)), "{said}: {faults:#?}");
    }

    /// The sound history without one record, and with others.
    fn changed(without: usize, with: &[Record]) -> Vec<Record> {
        let mut records = sound();
        records.remove(without);
        records.splice(without..without, with.iter().cloned());
        records
    }

    #[test]
    fn a_sound_history_has_no_fault() {
        assert_eq!(check(&sound()), [""; 0]);
        // A write whose answer was lost may have been made, or not, and two calls at once may see either.
        let unknown = [write("a", (1, 2), "lost", 1, Outcome::Unknown), read("a", (1, 3), 1, "given")];
        assert_eq!(check(&unknown), [""; 0]);
        let concurrent = [
            read("a", (1, 9), 1, "given"),
            write("a", (2, 8), "one", 1, Outcome::Done { revision: 5 }),
            read("a", (3, 4), 5, "one"),
        ];
        assert_eq!(check(&concurrent), [""; 0]);
        assert_eq!(check(&[]), [""; 0]);
    }

    #[test]
    fn lost_writes_and_stale_reads_are_found() {
        fails(&changed(2, &[read("a", (5, 6), 2, "given")]), "when 4 had been answered");
        let lost = [
            write("a", (1, 2), "one", 1, Outcome::Done { revision: 5 }),
            read("a", (0, 1), 1, "given"),
            read("a", (3, 4), 1, "given"),
        ];
        fails(&lost, "reader was answered a at 1, when 5 had been answered");
        fails(&changed(0, &[list((5, 6), 3, &[("a", 2, "given")])]), "watcher was answered a list at 3, when 4");
        let reversed = [
            write("a", (1, 2), "one", 1, Outcome::Done { revision: 9 }),
            write("a", (3, 4), "two", 5, Outcome::Done { revision: 7 }),
        ];
        fails(&reversed, "writer was answered a at 7, when 9");
    }

    #[test]
    fn lost_updates_and_writes_made_twice_are_found() {
        let lost = [
            read("a", (0, 1), 2, "given"),
            write("a", (2, 4), "one", 2, Outcome::Done { revision: 4 }),
            write("a", (3, 5), "two", 2, Outcome::Done { revision: 5 }),
        ];
        fails(&lost, "two at 5 was to replace 2, and replaced 4");
        let twice = [
            read("a", (0, 1), 2, "given"),
            write("a", (2, 4), "one", 2, Outcome::Done { revision: 4 }),
            read("a", (5, 6), 5, "one"),
        ];
        fails(&twice, "one was written at 4 and at 5");
        fails(&[read("a", (0, 1), 2, "from nowhere")], "which nobody wrote");
        let refused = [write("a", (0, 1), "one", 1, Outcome::Refused), read("a", (2, 3), 2, "one")];
        fails(&refused, "though the write was refused");
        fails(&[write("a", (0, 1), "one", 5, Outcome::Done { revision: 4 })], "has revision 4 and was to replace 5");
    }

    #[test]
    fn revisions_that_mean_two_things_are_found() {
        let two_values = [read("a", (0, 1), 2, "given"), read("a", (0, 1), 2, "given too")];
        fails(&two_values, "a at revision 2 is given and given too");
        let two_keys = [read("a", (0, 1), 2, "given"), read("b", (0, 1), 2, "given")];
        fails(&two_keys, "revision 2 is one of b and one of a");
    }

    #[test]
    fn gaps_and_repeats_of_watches_are_found() {
        fails(&changed(6, &[]), "was not shown a at 4, between 3 and 7");
        fails(&changed(7, &[]), "was not shown a at 7, between 4 and 9");
        fails(&changed(10, &[]), "watcher ended at 8 and has not seen a at 9");
        fails(&changed(10, &[event("a", 9, "four"), event("a", 9, "four")]), "saw a at 9 when it had seen 9");
        fails(&changed(8, &[event("a", 4, "one")]), "saw a at 4 when it had seen 7");
        fails(&changed(0, &[]), "before it listed");
        // A new list may take the place of what was missed, but not lead back, nor show what was not.
        assert_eq!(check(&changed(7, &[list((11, 12), 8, &[("a", 7, "two")])])), [""; 0]);
        fails(&changed(8, &[list((11, 12), 5, &[("a", 4, "one")])]), "listed 5 after it had seen 7");
        fails(&changed(8, &[list((11, 12), 8, &[("a", 4, "one")])]), "listed a of Some(4) at 8");
        fails(&changed(8, &[list((11, 12), 8, &[])]), "listed a of None at 8");
    }

    #[test]
    fn pods_that_start_twice_are_found() {
        assert_eq!(started_twice("a\nb\n\n\na"), BTreeSet::from(["a"]));
        assert_eq!(started_twice(""), BTreeSet::new());
    }
}

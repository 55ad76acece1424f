use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn next_in(schedule: &str, after: &str, zone_name: &str) -> String {
    let schedule = Schedule::parse(schedule).expect("a schedule");
    let zone = zone(zone_name).expect("a zone");
    schedule.next(at(after), &zone).map_or("never".to_owned(), |time| time.to_string())
}

#[test]
fn the_next_time_follows_every_field() {
    for (schedule, after, expected) in [
        ("* * * * *", "2024-02-28T23:59:30Z", "2024-02-29T00:00:00Z"),
        ("* * * * ?", "2024-02-28T23:59:30.9Z", "2024-02-29T00:00:00Z"),
        ("*/15 * * * *", "2024-01-01T00:15:00Z", "2024-01-01T00:30:00Z"),
        ("5/20 * * * *", "2024-01-01T00:06:00Z", "2024-01-01T00:25:00Z"),
        ("0 9-17/4 * * *", "2024-01-01T09:00:00Z", "2024-01-01T13:00:00Z"),
        ("0 0 1 jan,jul *", "2024-01-01T00:00:00Z", "2024-07-01T00:00:00Z"),
        ("0 0 * * mon", "2024-01-01T00:00:00Z", "2024-01-08T00:00:00Z"),
        // Both day fields restricted: either will do.
        ("0 0 13 * fri", "2024-01-01T00:00:00Z", "2024-01-05T00:00:00Z"),
        ("0 0 29 2 *", "2024-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 30 2 *", "2024-01-01T00:00:00Z", "never"),
        (", * * * *", "2024-01-01T00:00:00Z", "never"),
        ("@hourly", "2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"),
        ("@every 1h30m", "2024-01-01T00:00:00.7Z", "2024-01-01T01:30:00Z"),
        ("@every 1.5s", "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"),
        ("@every -5m", "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"),
        ("TZ=Asia/Tokyo 0 6 * * *", "2024-01-01T00:00:00Z", "2024-01-01T21:00:00Z"),
    ] {
        assert_eq!(next_in(schedule, after, "UTC"), expected, "{schedule} after {after}");
    }
}

/// As robfig/cron has it: half past two does not come on the day that has none, half past one comes twice where there are
/// two, and a midnight that is skipped is passed over.
#[test]
fn clock_changes_skip_and_repeat() {
    for (schedule, zone, after, expected) in [
        ("30 2 * * *", "Europe/Berlin", "2024-03-30T12:00:00Z", "2024-04-01T00:30:00Z"),
        ("30 2 * * *", "Europe/Berlin", "2024-10-26T12:00:00Z", "2024-10-27T00:30:00Z"),
        ("30 2 * * *", "Europe/Berlin", "2024-10-27T00:30:00Z", "2024-10-27T01:30:00Z"),
        ("30 1 * * *", "America/New_York", "2024-11-03T05:30:00Z", "2024-11-03T06:30:00Z"),
        ("0 9 * * *", "Asia/Kolkata", "2024-01-01T00:00:00Z", "2024-01-01T03:30:00Z"),
    ] {
        assert_eq!(next_in(schedule, after, zone), expected, "{schedule} in {zone} after {after}");
    }
}

#[test]
fn what_is_no_schedule_is_refused_in_upstreams_words() {
    for (schedule, expected) in [
        ("", "empty spec string"),
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        (" @hourly", "expected exactly 5 fields, found 1: [@hourly]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* 24 * * *", "end of range (24) above maximum (23): 24"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("* * * 13 *", "end of range (13) above maximum (12): 13"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        ("* * * * funday", r#"failed to parse int from funday: strconv.Atoi: parsing "funday": invalid syntax"#),
        ("0 0 * * L", r#"failed to parse int from L: strconv.Atoi: parsing "L": invalid syntax"#),
        ("-1 * * * *", r#"failed to parse int from : strconv.Atoi: parsing "": invalid syntax"#),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("*/-2 * * * *", "negative number (-2) not allowed: -2"),
        ("1/2/3 * * * *", "too many slashes: 1/2/3"),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("9-3 * * * *", "beginning of range (9) beyond end of range (3): 9-3"),
        (
            "99999999999999999999 * * * *",
            r#"failed to parse int from 99999999999999999999: strconv.Atoi: parsing "99999999999999999999": value out of range"#,
        ),
        ("@reboot", "unrecognized descriptor: @reboot"),
        ("@every 5x", r#"failed to parse duration @every 5x: time: unknown unit "x" in duration "5x""#),
        ("@every 5", r#"failed to parse duration @every 5: time: missing unit in duration "5""#),
        ("@every  5m", r#"failed to parse duration @every  5m: time: invalid duration " 5m""#),
        ("@every 9999999999h", r#"failed to parse duration @every 9999999999h: time: invalid duration "9999999999h""#),
        ("TZ=Nope/Zone * * * * *", "provided bad location Nope/Zone: unknown time zone Nope/Zone"),
    ] {
        assert_eq!(Schedule::parse(schedule).expect_err(schedule).to_string(), expected);
    }
}

#[test]
fn the_last_due_time_is_found_even_after_many_missed_ones() {
    let every_minute = Schedule::parse("* * * * *").expect("a schedule");
    let due = |from: &str, until: &str| {
        let found = every_minute.last_due(at(from), at(until), &TimeZone::UTC, 100);
        found.map(|(time, count)| (time.to_string(), count))
    };
    assert_eq!(due("2024-01-01T00:00:00Z", "2024-01-01T00:00:59Z"), None);
    let three = due("2024-01-01T00:00:00Z", "2024-01-01T00:03:10Z");
    assert_eq!(three, Some(("2024-01-01T00:03:00Z".to_owned(), 3)));
    let years = due("2020-01-01T00:00:00Z", "2024-01-01T00:03:10Z");
    assert_eq!(years, Some(("2024-01-01T00:03:00Z".to_owned(), 101)));
}

#[test]
fn zones_are_those_of_the_database() {
    let explicit = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
    for (name, expected) in [
        ("UTC", &[][..]),
        ("Europe/Berlin", &[]),
        ("America/Argentina/Buenos_Aires", &[]),
        ("Etc/GMT+5", &[]),
        ("", &["timeZone must be nil or non-empty string"]),
        ("Local", &[explicit]),
        ("local", &[explicit, "unknown time zone local"]),
        ("Nope/Zone", &["unknown time zone Nope/Zone"]),
        ("europe/berlin", &["unknown time zone europe/berlin"]),
        ("../../etc/passwd", &["unknown time zone ../../etc/passwd"]),
        ("Europe//Berlin", &["unknown time zone Europe//Berlin"]),
        ("/Europe", &["unknown time zone /Europe"]),
    ] {
        assert_eq!(check_zone(name), expected, "{name}");
    }
}

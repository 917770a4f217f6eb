//! Every key from every source, what wins, and what is refused in which words.

use super::*;

const MACHINE: Machine = Machine { memory_bytes: 8 << 30, cores: 4 };

fn flags(pairs: &[(&str, &str)]) -> Settings {
    Settings::from_flags(pairs.iter().map(|(key, text)| (*key, (*text).to_owned())))
}

fn environment(pairs: &[(&str, &str)]) -> Settings {
    let pairs = pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Settings::from_environment(pairs)
}

fn refused(settings: &Settings) -> String {
    let text = Config::new(settings, MACHINE).expect_err("must be refused").to_string();
    assert!(!text.contains('\n'), "an error is one line: {text}");
    text
}

#[test]
fn the_defaults() {
    let config = Config::new(&Settings::default(), MACHINE).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:7440");
    assert_eq!(config.data_dir, PathBuf::from("./forebay-data"));
    assert_eq!(config.memory_limit_bytes, 4 << 30);
    assert_eq!(config.message_bytes_max, 16 << 20);
    assert_eq!(config.disk_limit_bytes, None);
    assert_eq!((config.disk_headroom_bytes, config.spill_reserve_bytes), (256 << 20, 256 << 20));
    assert_eq!((config.watermark_high, config.watermark_low), (70, 60));
    assert_eq!(config.shards, 4);
    assert_eq!(config.pin, Vec::<usize>::new());
    assert_eq!(config.token, None);
    assert!(!config.insecure && !config.busy_poll);
    assert_eq!(config.disk_backend, DiskBackend::Auto);
    assert_eq!(config.drain_timeout, Duration::from_secs(5));
    assert_eq!(config.log, LogLevel::Info);
}

#[test]
fn a_small_machine_gets_the_smallest_limit_and_smaller_messages() {
    let machine = Machine { memory_bytes: 20 << 20, cores: 1 };
    let config = Config::new(&Settings::default(), machine).unwrap();
    assert_eq!(config.memory_limit_bytes, 16 << 20);
    assert_eq!(config.message_bytes_max, 2 << 20);
}

#[test]
fn there_is_a_shard_for_each_core_as_far_as_memory_goes() {
    let shards = |cores, pairs: &[(&str, &str)]| {
        let machine = Machine { memory_bytes: 8 << 30, cores };
        Config::new(&flags(pairs), machine).unwrap().shards
    };
    assert_eq!(shards(1, &[]), 1);
    assert_eq!(shards(3, &[]), 3);
    assert_eq!(shards(64, &[]), 16);
    assert_eq!(shards(8, &[("memory_limit", "40MiB")]), 2);
    assert_eq!(shards(8, &[("pin", "3,5")]), 2);
    assert_eq!(shards(2, &[("shards", "5")]), 5);
}

#[test]
fn flags_go_before_environment_before_file() {
    let file = Settings::from_toml(
        "listen = \"127.0.0.1:1\"\nmemory_limit = \"64MiB\"\nconnections_max = 5\n",
        "f.toml",
    );
    let environment =
        environment(&[("FOREBAY_LISTEN", "127.0.0.1:2"), ("FOREBAY_MEMORY_LIMIT", "128MiB")]);
    let all = flags(&[("listen", "127.0.0.1:3")]).over(environment).over(file.unwrap());
    let config = Config::new(&all, MACHINE).unwrap();
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.memory_limit_bytes, 128 << 20);
    assert_eq!(config.connections_max, 5);
}

#[test]
fn every_key_can_come_from_every_source() {
    let values = [
        ("listen", "0.0.0.0:9"),
        ("admin", "0.0.0.0:10"),
        ("data_dir", "/tmp/x"),
        ("memory_limit", "64MiB"),
        ("disk_limit", "1GiB"),
        ("disk_headroom", "1MiB"),
        ("spill_reserve", "512MiB"),
        ("watermark_high", "80%"),
        ("watermark_low", "50"),
        ("message_bytes_max", "1MiB"),
        ("shards", "1"),
        ("pin", "0,1"),
        ("token", "secret"),
        ("insecure", "false"),
        ("connections_max", "7"),
        ("drain_timeout", "1s"),
        ("hello_timeout", "2s"),
        ("frame_timeout", "3s"),
        ("stall_timeout", "4s"),
        ("disk_backend", "threads"),
        ("busy_poll", "true"),
        ("log", "debug"),
    ];
    assert_eq!(values.map(|(key, _)| key), KEYS);
    let by_flags = Config::new(&flags(&values), MACHINE).unwrap();
    assert_eq!(by_flags.pin, [0, 1]);
    assert_eq!(by_flags.token.as_deref(), Some("secret"));
    assert_eq!(by_flags.stall_timeout, Duration::from_secs(4));

    let names = values.map(|(key, _)| format!("FOREBAY_{}", key.to_uppercase()));
    let pairs: Vec<_> = names.iter().zip(&values).map(|(n, (_, v))| (n.as_str(), *v)).collect();
    assert_eq!(Config::new(&environment(&pairs), MACHINE).unwrap(), by_flags);

    let text: String = values.map(|(key, value)| format!("{key} = \"{value}\"\n")).concat();
    let by_file = Settings::from_toml(&text, "f.toml").unwrap();
    assert_eq!(Config::new(&by_file, MACHINE).unwrap(), by_flags);
}

#[test]
fn a_printed_configuration_gives_itself_again() {
    let settings = flags(&[
        ("listen", "[::1]:7440"),
        ("data_dir", "/tmp/with \"quotes\""),
        ("memory_limit", "123456789"),
        ("admin", "off"),
        ("pin", "3"),
        ("drain_timeout", "1500ms"),
        ("disk_backend", "io_uring"),
        ("busy_poll", "true"),
        ("log", "trace"),
    ]);
    let config = Config::new(&settings, MACHINE).unwrap();
    let again = Settings::from_toml(&config.to_toml(), "printed").unwrap();
    assert_eq!(Config::new(&again, MACHINE).unwrap(), config);
}

#[test]
fn a_printed_configuration_does_not_give_the_token_away() {
    let config = Config::new(&flags(&[("token", "s3cret")]), MACHINE).unwrap();
    assert!(!config.to_toml().contains("s3cret"));
    assert!(config.to_toml().contains("token is set"));
}

#[test]
fn beyond_loopback_only_with_a_token_or_said_aloud() {
    for open in ["0.0.0.0:7440", "[::]:7440", "192.168.1.1:7440"] {
        let text = refused(&flags(&[("listen", open)]));
        assert!(text.contains("--insecure") && text.contains(open), "{text}");
        Config::new(&flags(&[("listen", open), ("token", "t")]), MACHINE).unwrap();
        Config::new(&flags(&[("listen", open), ("insecure", "true")]), MACHINE).unwrap();
    }
    for loopback in ["127.0.0.1:7440", "[::1]:0", "localhost:7440"] {
        Config::new(&flags(&[("listen", loopback)]), MACHINE).unwrap();
    }
    let text = refused(&flags(&[("token", "t"), ("insecure", "true")]));
    assert!(text.contains("contradict"), "{text}");
    for open in ["0.0.0.0:7441", "[::]:0"] {
        let text = refused(&flags(&[("admin", open)]));
        assert!(text.starts_with(&format!("--admin: {open} is open to other")), "{text}");
        Config::new(&flags(&[("admin", open), ("token", "t")]), MACHINE).unwrap();
        Config::new(&flags(&[("admin", open), ("insecure", "true")]), MACHINE).unwrap();
    }
    for (said, admin) in [("off", None), ("[::1]:0", Some("[::1]:0".parse().unwrap()))] {
        assert_eq!(Config::new(&flags(&[("admin", said)]), MACHINE).unwrap().admin, admin);
    }
}

#[test]
fn a_token_that_is_nearer_takes_back_an_insecure_that_is_farther() {
    let file = Settings::from_toml("insecure = true\nlisten = \"0.0.0.0:1\"", "f.toml").unwrap();
    let config = Config::new(&flags(&[("token", "t")]).over(file), MACHINE).unwrap();
    assert!(!config.insecure);
    assert_eq!(config.token.as_deref(), Some("t"));
}

#[test]
fn messages_must_fit_their_share_of_memory() {
    let settings =
        flags(&[("shards", "1"), ("memory_limit", "64MiB"), ("message_bytes_max", "9MiB")]);
    let text = refused(&settings);
    for part in ["message_bytes_max 9MiB", "memory_limit 64MiB", "8MiB"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let settings =
        flags(&[("shards", "1"), ("memory_limit", "64MiB"), ("message_bytes_max", "8MiB")]);
    assert_eq!(Config::new(&settings, MACHINE).unwrap().message_bytes_max, 8 << 20);
    let text = refused(&flags(&[("memory_limit", "4GiB"), ("message_bytes_max", "65MiB")]));
    assert!(text.contains("64MiB"), "{text}");
    let config = Config::new(&flags(&[("memory_limit", "32MiB")]), MACHINE).unwrap();
    assert_eq!((config.shards, config.message_bytes_max), (2, 2 << 20));
}

#[test]
fn refusals_name_the_setting_as_its_source_does() {
    for (key, text, expected) in [
        ("memory_limit", "1MiB", "--memory-limit: 1MiB is too little"),
        ("memory_limit", "lots", "--memory-limit: `lots`"),
        ("shards", "17", "--shards: `17` is not a number of shards from 1 to 16"),
        ("shards", "0", "--shards: `0`"),
        ("pin", "a", "--pin: `a`"),
        ("listen", "7440", "--listen: `7440`"),
        ("admin", "on", "--admin: `on` is not an address with a port"),
        ("listen", "example.org:7440", "--listen: `example.org:7440`"),
        ("connections_max", "0", "--connections-max: `0`"),
        ("drain_timeout", "5", "--drain-timeout: `5` has no unit"),
        ("drain_timeout", "2d", "--drain-timeout: `2d` is longer"),
        ("hello_timeout", "0s", "--hello-timeout: no time"),
        ("disk_backend", "uring", "--disk-backend: `uring` is not a way to the disk"),
        ("busy_poll", "maybe", "--busy-poll: `maybe`"),
        ("log", "loud", "--log: `loud`"),
        ("token", "", "--token: an empty token"),
        ("data_dir", "", "--data-dir: no directory"),
    ] {
        let refusal = refused(&flags(&[(key, text)]));
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    let refusal = refused(&environment(&[("FOREBAY_SHARDS", "x")]));
    assert!(refusal.starts_with("FOREBAY_SHARDS: "), "{refusal}");
    let refusal = refused(&Settings::from_toml("shards = 33", "f.toml").unwrap());
    assert!(refusal.starts_with("f.toml: shards: "), "{refusal}");
}

#[test]
fn a_file_with_a_wrong_key_or_no_toml_is_refused() {
    let error = |text| Settings::from_toml(text, "f.toml").unwrap_err().to_string();
    assert_eq!(error("memory = 1"), "f.toml: there is no setting `memory`");
    let text = error("shards = 1\n\nlisten = = 2\n");
    assert!(text.starts_with("f.toml, line 3: ") && !text.contains('\n'), "{text}");
    assert!(error("[server]\nlisten = 1").contains("no setting `server`"));
    assert!(error("shards = 1.5").contains("float"));
}

#[test]
fn the_environment_of_clients_and_others_is_left_alone() {
    let variables =
        [("FOREBAY_SERVER", "x"), ("PATH", "/bin"), ("FOREBAY_LISTEN", ""), ("SHARDS", "9")];
    assert!(environment(&variables).is_empty());
}

#[test]
fn what_goes_to_disk_is_checked_as_a_whole() {
    let config = |pairs: &[(&str, &str)]| Config::new(&flags(pairs), MACHINE).unwrap();
    let small = config(&[("disk_limit", "64MiB")]);
    assert_eq!((small.disk_limit_bytes, small.spill_reserve_bytes), (Some(64 << 20), 64 << 20));
    let none = config(&[("disk_limit", "0"), ("spill_reserve", "1GiB")]);
    assert_eq!((none.disk_limit_bytes, none.spill_reserve_bytes), (Some(0), 0));
    let marks = |pairs| {
        let config = config(pairs);
        (config.watermark_high, config.watermark_low)
    };
    assert_eq!(marks(&[("watermark_high", "50%")]), (50, 40));
    assert_eq!(marks(&[("watermark_high", "5")]), (5, 1));
    assert_eq!(marks(&[("watermark_low", "90")]), (95, 90));
    assert_eq!(marks(&[("watermark_low", "20")]), (70, 20));

    let refused = |pairs: &[(&str, &str)]| refused(&flags(pairs));
    assert_eq!(
        refused(&[("disk_limit", "8MiB")]),
        "--disk-limit: 8MiB is too little for 4 shard(s), which need 16MiB each: give 64MiB or \
         more, or 0 to spill nothing"
    );
    assert_eq!(
        refused(&[("disk_limit", "1GiB"), ("spill_reserve", "2GiB")]),
        "--spill-reserve: spill_reserve 2GiB is over disk_limit 1GiB: raise disk_limit or lower \
         spill_reserve"
    );
    for pairs in [
        &[("watermark_high", "60"), ("watermark_low", "60")][..],
        &[("watermark_high", "1")],
        &[("watermark_low", "95")],
    ] {
        assert!(refused(pairs).contains("is not below watermark_high"), "{pairs:?}");
    }
    for text in ["0", "96", "70 percent", ""] {
        let said = refused(&[("watermark_high", text)]);
        assert!(said.contains("from 1% to 95%"), "{text}: {said}");
    }
}

//! What the arguments mean, and what is said about those that mean nothing.

use super::*;
use crate::cli::failure::Exit;

fn parsed(line: &str) -> Result<CommandLine, clap::Error> {
    CommandLine::try_parse_from(line.split_whitespace())
}

fn arguments(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

#[test]
fn the_definition_holds_together() {
    CommandLine::command().debug_assert();
}

#[test]
fn the_help_names_every_exit_code() {
    let exits =
        [Exit::Done, Exit::Failed, Exit::Usage, Exit::NotFound, Exit::Unreachable, Exit::TimedOut];
    for exit in exits {
        assert!(AFTER_HELP.contains(&format!("\n  {}  ", exit as u8)));
    }
}

#[test]
fn all_commands_of_the_contract_are_understood() {
    let lines = [
        "forebay serve --listen 127.0.0.1:0 --data-dir d --memory-limit 256MiB --pin 0,1",
        "forebay serve --shards 1 --connections-max 9 --hello-timeout 1s --stall-timeout 1m",
        "forebay serve --disk-backend io_uring",
        "forebay serve --token secret --config f.toml --print-config",
        "forebay serve --insecure --message-bytes-max 1MiB --drain-timeout 5s --busy-poll",
        "forebay serve --log info",
        "forebay queue create jobs --messages-max 10 --bytes-max 1GiB --on-full drop_oldest",
        "forebay queue create jobs --on-full drop-newest --message-bytes-max 64KiB",
        "forebay queue create jobs --subscription a --subscription b --lease 30s",
        "forebay queue create jobs --max-attempts unlimited --backoff exponential:1s..5m",
        "forebay queue create jobs --backoff none --dead-letter graves --unacked-max 5",
        "forebay queue create jobs --backoff list:1s,10s,1m --max-attempts 3 --expires-after 1h",
        "forebay queue purge jobs --subscription a",
        "forebay queue peek jobs --subscription a",
        "forebay subscription create jobs a --start oldest --lease 1m --backoff fixed:1s",
        "forebay subscription list jobs --json",
        "forebay subscription show jobs a",
        "forebay subscription update jobs a --max-attempts 7",
        "forebay subscription delete jobs a --force",
        "forebay dlq show jobs --subscription a --count 5 --json",
        "forebay dlq redrive jobs --count 5 --rate 10/s --filter a=b --to other",
        "forebay queue list",
        "forebay queue list pre --json --server 127.0.0.1:1",
        "forebay queue --server 127.0.0.1:1 --json show jobs",
        "forebay queue update jobs --messages-max 0",
        "forebay queue delete jobs --if-empty",
        "forebay queue purge jobs",
        "forebay queue peek jobs --count 3 --skip 4",
        "forebay publish jobs",
        "forebay publish jobs one two --header a=b --header c=d --rate 10 --timeout 5s --create",
        "forebay publish jobs --count 5 --size 1KiB",
        "forebay publish jobs --count 5",
        "forebay consume jobs --count 5 --auto-ack --json",
        "forebay consume jobs --follow",
        "forebay consume jobs --subscription a --nack --reason why --lease 5s",
        "forebay consume jobs --reject --reason why",
        "forebay consume jobs --timeout 500ms --follow",
        "forebay stats --watch --interval 2s",
        "forebay ping --server 127.0.0.1:1 --token t --timeout 1s",
        "forebay completions bash",
    ];
    for line in lines {
        assert!(parsed(line).is_ok(), "{line}: {}", parsed(line).unwrap_err());
    }
}

#[test]
fn what_means_nothing_is_refused() {
    let lines = [
        "forebay serve --frobnicate",
        "forebay serve --token t --insecure",
        "forebay queue create",
        "forebay queue create jobs --on-full explode",
        "forebay queue create jobs --bytes-max 5XB",
        "forebay queue create jobs --backoff sometimes",
        "forebay queue create jobs --max-attempts 0",
        "forebay subscription create jobs",
        "forebay subscription create jobs a --start yesterday",
        "forebay subscription update jobs",
        "forebay dlq redrive jobs --rate 0",
        "forebay dlq redrive jobs --filter nothing",
        "forebay consume jobs --nack --reject",
        "forebay consume jobs --nack --auto-ack",
        "forebay publish jobs body --count 5",
        "forebay publish jobs --size 10",
        "forebay publish jobs --header novalue",
        "forebay publish jobs --rate 0",
        "forebay consume jobs --timeout 5",
        "forebay consume jobs --count -1",
        "forebay consume",
        "forebay stats --interval 5s",
        "forebay completions tcl",
        "forebay nonsense",
    ];
    for line in lines {
        let error = parsed(line).expect_err(line);
        let failure = usage_failure(&error.to_string(), &arguments(line));
        assert_eq!(failure.exit, Exit::Usage);
        let told = failure.line(false);
        assert!(!told.contains('\n') && told.contains("--help`"), "{line}: {told}");
    }
}

#[test]
fn a_wrong_argument_is_explained_on_one_line() {
    let told = |line| {
        let error = parsed(line).unwrap_err().to_string();
        usage_failure(&error, &arguments(line)).line(false)
    };
    assert_eq!(
        told("forebay consume jobs --timeout 5"),
        "error: invalid value '5' for '--timeout <TIME>': `5` has no unit; write for example 5s \
         or 5ms; see `forebay consume --help`"
    );
    assert!(told("forebay consume jobs --folow").contains("'--follow'"));
    assert!(told("forebay consume").contains("<NAME>"));
    assert!(told("forebay queue --json show").contains("`forebay queue show --help`"));
}

#[test]
fn settings_of_serve_go_by_the_names_of_the_configuration_file() {
    let line = parsed("forebay serve --memory-limit 256MiB --insecure --pin 0,1").unwrap();
    let Command::Serve(args) = line.command else { panic!("not serve") };
    let settings = args.settings();
    let expected = [("memory_limit", "256MiB"), ("pin", "0,1"), ("insecure", "true")];
    assert_eq!(settings, expected.map(|(key, text)| (key, text.to_owned())));
}

/// Every command and every flag is in docs/CLI.md.
#[test]
fn the_document_knows_every_command_and_flag() {
    const DOCUMENT: &str = include_str!("../../docs/CLI.md");
    fn check(command: &clap::Command) {
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long() else { continue };
            let name = command.get_name();
            assert!(
                ["help", "version"].contains(&long) || DOCUMENT.contains(&format!("--{long}")),
                "docs/CLI.md does not know --{long} of {name}"
            );
        }
        for command in command.get_subcommands() {
            let name = command.get_name();
            assert!(DOCUMENT.contains(name), "docs/CLI.md does not know {name}");
            check(command);
        }
    }
    check(&CommandLine::command());
}

#[test]
fn the_document_has_the_exit_codes() {
    let document = include_str!("../../docs/CLI.md");
    for code in 0..=6 {
        assert!(document.contains(&format!("\n| {code} | ")), "{code}");
    }
}

#[test]
fn an_update_promises_no_default() {
    for (group, option) in [("queue", "--on-full"), ("subscription", "--backoff")] {
        let help = |verb| {
            let told = parsed(&format!("forebay {group} {verb} --help")).unwrap_err().to_string();
            let (_, options) = told.split_once(option).expect("the option has a help");
            options.contains("[default: block]") || options.contains("[default: exp")
        };
        assert!(help("create") && !help("update"), "{group}");
    }
}

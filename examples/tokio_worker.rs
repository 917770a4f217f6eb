//! A worker that fails now and then: ten jobs, eight at a time; what fails is tried again after a
//! back-off, and what fails three times is a dead letter. Start a broker first, by
//! `cargo run --release -- serve`, then
//! `cargo run --release --features tokio --example tokio_worker [host:port]`.

use forebay::client::tokio::{Consumer, Message, Publisher};
use forebay::client::{
    ClientError, ConnectOptions, Connection, ConsumerOptions, DEFAULT_SERVER, MaxAttempts,
    PublisherOptions, QueueOptions, SubscriptionOptions,
};
use std::time::Duration;

const JOBS: u32 = 10;
/// Fails whatever is done.
const HOPELESS: u32 = 7;

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let server = std::env::args().nth(1).unwrap_or_else(|| DEFAULT_SERVER.into());
    let broker = ConnectOptions::new(server).on_event(|event| eprintln!("{event:?}"));
    let retries = SubscriptionOptions {
        max_attempts: Some(MaxAttempts::Count(3)),
        backoff: Some("exponential:100ms..1s".parse().expect("a back-off")),
        ..SubscriptionOptions::default()
    };
    let admin = broker.clone();
    let created = tokio::task::spawn_blocking(move || {
        let mut connection = Connection::open(&admin)?;
        connection.queue_create_with("jobs", &QueueOptions::default(), &[], &retries)
    });
    created.await.expect("creating does not panic")?;

    let publisher = Publisher::open(&broker, "jobs", PublisherOptions::default()).await?;
    let jobs = (0..JOBS).map(|job| job.to_string());
    publisher.publish_many(jobs).await?.await?;
    publisher.close().await?;

    let mut consumer = Consumer::open(&broker, "jobs", ConsumerOptions::default()).await?;
    let working = consumer.for_each_concurrent(8, work);
    // A worker has no end of its own; this one stops after a while.
    if let Ok(ended) = tokio::time::timeout(Duration::from_secs(5), working).await {
        ended?;
    }
    let answered = consumer.close().await?;
    println!("{} answers; the dead letter is in jobs.dead", answered.acked);
    Ok(())
}

async fn work(message: Message) -> Result<(), String> {
    let text = String::from_utf8_lossy(message.body());
    let job: u32 = text.parse().map_err(|error| format!("no job: {error}"))?;
    if job == HOPELESS || job.is_multiple_of(3) && message.attempts() == 1 {
        println!("job {job}: failed at attempt {}", message.attempts());
        return Err(format!("job {job} does not work"));
    }
    println!("job {job}: done at attempt {}", message.attempts());
    Ok(())
}

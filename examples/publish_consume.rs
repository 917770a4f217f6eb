//! Publishes ten messages and takes them back. Start a broker first, by
//! `cargo run --release -- serve`, then
//! `cargo run --release --example publish_consume [host:port]`.

use forebay::client::{
    ClientError, ConnectOptions, Connection, Consumer, ConsumerOptions, DEFAULT_SERVER, Message,
    Publisher, PublisherOptions, QueueOptions,
};
use std::time::Duration;

fn main() -> Result<(), ClientError> {
    let server = std::env::args().nth(1).unwrap_or_else(|| DEFAULT_SERVER.into());
    let broker = ConnectOptions::new(server).on_event(|event| eprintln!("{event:?}"));

    let mut connection = Connection::open(&broker)?;
    connection.queue_create("example", &QueueOptions::default())?;

    // Nine at the least cost per message, and one with properties; each call gives a confirm.
    let publisher = Publisher::open(&broker, "example", PublisherOptions::default())?;
    let bodies: Vec<String> = (1..10).map(|number| format!("message {number}")).collect();
    let many = publisher.publish_many(bodies.iter().map(String::as_str))?;
    let last = Message::from("the last one").header("colour", "blue")?;
    let last = publisher.publish(&last)?;
    many.wait()?;
    println!("ten confirmed, held in {:?}", last.wait()?);

    let mut consumer = Consumer::open(&broker, "example", ConsumerOptions::default())?;
    let mut taken = 0;
    while taken < 10 {
        let batch = consumer.recv_batch(Some(Duration::from_secs(5)))?;
        if batch.is_empty() {
            break;
        }
        for message in &batch {
            let colour = message.properties().header("colour").unwrap_or(b"none");
            let (body, colour) = (message.body(), String::from_utf8_lossy(colour));
            println!("{}: {} ({colour})", message.sequence(), String::from_utf8_lossy(body));
        }
        taken += batch.len();
        batch.ack();
    }
    let acks = consumer.close()?;
    println!("{} acked", acks.acked);

    let left = connection.queue_describe("example")?.ready;
    println!("{left} left");
    Ok(())
}

//! Handlers that run at the same time, so many at most.

use super::consumer::Consumer;
use super::message::{Message, Other, Receipt, Verb};
use crate::client::ClientError;
use crate::protocol::hot::NackKind;
use ::tokio::task::JoinSet;
use std::any::Any;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

impl Consumer {
    /// Runs `handler` on each message, up to `limit` at a time, each in a task of its own. When it
    /// is done the message is acked; on an error it is nacked with the error's text, and on a panic
    /// with the panic's, so that it comes again after the subscription's back-off or is
    /// dead-lettered. A handler may also answer by itself, by the message's own verbs.
    ///
    /// Ends when the consumer was [stopped](Consumer::stopper), and then waits for the handlers
    /// that run. Cancelled, it stops them where they wait, and their messages go back.
    ///
    /// ```no_run
    /// # use forebay::client::tokio::{Consumer, Message};
    /// # async fn example(consumer: &mut Consumer) -> Result<(), forebay::client::ClientError> {
    /// consumer.for_each_concurrent(16, async |message: Message| {
    ///     let text = str::from_utf8(message.body())?;
    ///     println!("{text}");
    ///     Ok::<(), std::str::Utf8Error>(())
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// What ended the consumer, after the handlers that run have ended.
    ///
    /// # Panics
    /// If `limit` is 0.
    pub async fn for_each_concurrent<F, R, E>(
        &mut self,
        limit: usize,
        handler: F,
    ) -> Result<(), ClientError>
    where
        F: Fn(Message) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + 'static,
    {
        assert!(limit > 0, "at least one handler must run");
        let handler = Arc::new(handler);
        let mut running = JoinSet::new();
        let result = loop {
            while running.try_join_next().is_some() {}
            if running.len() >= limit {
                running.join_next().await;
                continue;
            }
            match self.recv().await {
                Ok(Some(message)) => {
                    let (message, receipt) = message.with_receipt();
                    running.spawn(handle(Arc::clone(&handler), message, Undecided(receipt)));
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        while running.join_next().await.is_some() {}
        result
    }
}

/// Gives the message back, should its handler be stopped before it has decided.
struct Undecided(Arc<Receipt>);

impl Drop for Undecided {
    fn drop(&mut self) {
        self.0.answer(Verb::Other(Other::GiveBack));
    }
}

async fn handle<F, R, E>(handler: Arc<F>, message: Message, undecided: Undecided)
where
    F: Fn(Message) -> R,
    R: Future<Output = Result<(), E>>,
    E: Display,
{
    let failed = |text: &str| {
        Verb::Other(Other::Nack { kind: NackKind::Failed, delay_ms: None, text: text.into() })
    };
    let begun = catch_unwind(AssertUnwindSafe(|| handler(message)));
    let result = match begun {
        Ok(handling) => {
            let mut handling = pin!(handling);
            poll_fn(|task| {
                let polled = catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(task)));
                match polled {
                    Ok(polled) => polled.map(Ok),
                    Err(panic) => Poll::Ready(Err(panic)),
                }
            })
            .await
        }
        Err(panic) => Err(panic),
    };
    undecided.0.answer(match result {
        Ok(Ok(())) => Verb::Ack,
        Ok(Err(error)) => failed(&error.to_string()),
        Err(panic) => failed(&panic_text(&*panic)),
    });
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("for no reason that it gave"))
}

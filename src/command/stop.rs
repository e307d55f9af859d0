//! The word by which long work is told to come to its end in good order.

use tokio::sync::watch;

/// Says when to stop. Whoever drops it never will.
#[derive(Debug)]
pub struct StopButton(watch::Sender<bool>);

/// What the work looks at.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl StopButton {
    /// A button, and what it moves.
    pub fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(false);
        (StopButton(sender), Stop(receiver))
    }

    /// Stop now.
    pub fn press(&self) {
        self.0.send(true).ok();
    }
}

impl Stop {
    /// Whether the button was pressed.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the button is pressed. Nothing is lost when this is dropped.
    pub async fn asked(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn only_the_button_stops() {
        let (button, mut stop) = StopButton::new();
        let mut other = stop.clone();
        assert!(timeout(Duration::from_secs(9), stop.asked()).await.is_err());
        button.press();
        stop.asked().await;
        other.asked().await;
        let (button, mut stop) = StopButton::new();
        drop(button);
        assert!(timeout(Duration::from_secs(9), stop.asked()).await.is_err());
    }
}

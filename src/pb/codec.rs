//! The codecs of the generated services: protobuf, with buffers of the size of our messages.
//!
//! The usual buffer of 8 KiB, one for each direction of each call, is most of what a task allocates.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Bytes that a buffer has at first: most messages fit, and so small a piece comes from the
/// allocator's fastest shelf. A larger message makes it grow.
const BUFFER: usize = 1000;
/// Bytes that are gathered before they are handed on.
const HAND_ON: usize = 32 << 10;

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, HAND_ON)
}

/// Messages both ways; what `build.rs` names in the generated code.
#[derive(Clone, Copy, Debug)]
pub struct Protobuf<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Protobuf<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Protobuf<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(settings())
    }
}

/// A request that is encoded already, and messages back: a call's future does not carry a large
/// message from state to state.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<U>(PhantomData<U>);

impl<U> Default for Encoded<U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<U: Message + Default + Send + 'static> Codec for Encoded<U> {
    type Encode = Bytes;
    type Decode = U;
    type Encoder = AsIs;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        AsIs
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(settings())
    }
}

/// Puts encoded messages into the buffer as they are.
#[derive(Clone, Copy, Debug)]
pub struct AsIs;

impl Encoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

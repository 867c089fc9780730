//! The details of a status as they stand in headers and trailers.
//!
//! Whoever made them is not trusted: tonic's own reader and its generated clients panic on details
//! that are no base64.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::HeaderMap;

/// Where a status has its details.
pub const DETAILS: &str = "grpc-status-details-bin";
/// With padding or without, as clients take it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The details in headers or trailers, `None` where there are none.
///
/// # Errors
/// When they are no base64.
pub fn read(headers: &HeaderMap) -> Option<Result<Vec<u8>, base64::DecodeError>> {
    headers
        .get(DETAILS)
        .map(|value| BASE64.decode(value.as_bytes()))
}

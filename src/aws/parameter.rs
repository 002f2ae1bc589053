//! Secrets in Systems Manager's Parameter Store, where the key of a fleet is at home: user data is no place for one, since
//! many may read it.
//!
//! One call, `GetParameter`, signed and sent by what the SDK is built upon: the SDK of this service alone would be as large
//! as all else that is built. The endpoint is `AWS_ENDPOINT_URL_SSM`, that of the configuration, or the region's.
//! Refused: to keep a value, to show one, answers longer than any that there can be.
//!
//! <https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParameter.html>

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_sdk_ec2::config::ProvideCredentials;
use aws_sdk_ec2::config::http::{HttpRequest, HttpResponse};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Connector, proxy::ProxyConfig};
use aws_smithy_runtime_api::client::http::HttpConnector;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::call::{Calls, Failure, causes, of_code};

/// Reads parameters, one call each.
#[derive(Debug)]
pub struct Parameters {
    config: SdkConfig,
    endpoint: String,
    calls: Calls,
    within: Duration,
}

/// The value of a parameter. Wiped from memory when dropped, and shown by no formatting.
pub struct Secret(Zeroizing<String>);

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error(
        "the instance's role does not allow {ACTION} on {arn}, or kms:Decrypt on the key that the parameter is encrypted by"
    )]
    Unauthorized { arn: String },
    #[error(
        "there is no parameter {name} in {region}; make it once: aws ssm put-parameter --region {region} \
         --type SecureString --name {name} --value \"$(openssl rand -hex 32)\""
    )]
    Missing { name: String, region: String },
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Parameters {
    /// With the credentials, region and endpoint of `config`; a call may take `within` in all. Makes no request yet.
    #[must_use]
    pub fn new(config: &SdkConfig, calls: Calls, within: Duration) -> Self {
        let named = std::env::var("AWS_ENDPOINT_URL_SSM").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = named.or_else(|| config.endpoint_url().map(str::to_owned));
        let endpoint =
            endpoint.unwrap_or_else(|| format!("https://ssm.{}.{}", region(config), domain(region(config))));
        let endpoint = format!("{}/", endpoint.trim_end_matches('/'));
        Self { config: config.clone(), endpoint, calls, within }
    }

    /// The value of a parameter, decrypted.
    ///
    /// # Errors
    /// See [`ParameterError`].
    pub async fn get(&self, name: &str) -> Result<Secret, ParameterError> {
        let asked = timeout(self.within, self.ask(name)).await;
        let late = || Failure::Unavailable {
            action: ACTION,
            reason: format!("nothing came from {} within {} s", self.endpoint, self.within.as_secs_f32()),
        };
        let answer = asked.unwrap_or_else(|_| Err(late()));
        self.calls.count(ACTION, &answer);
        let region = region(&self.config);
        answer.map_err(|failure| match failure {
            Failure::Unauthorized { .. } => ParameterError::Unauthorized { arn: arn(region, name) },
            Failure::Refused { code, .. } if code == "ParameterNotFound" => {
                ParameterError::Missing { name: name.to_owned(), region: region.to_owned() }
            }
            failure => failure.into(),
        })
    }

    async fn ask(&self, name: &str) -> Result<Secret, Failure> {
        let body = serde_json::json!({ "Name": name, "WithDecryption": true }).to_string();
        let request = self.signed(body).await?;
        // Calls are rare: no connection waits for the next one.
        let connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .proxy_config(ProxyConfig::from_env())
            .build();
        let answer = connector.call(request).await.map_err(|error| unavailable(&causes(&error)))?;
        understood(answer).await
    }

    async fn signed(&self, body: String) -> Result<HttpRequest, Failure> {
        let provider =
            self.config.credentials_provider().ok_or_else(|| unavailable("there are no credentials"))?;
        let credentials = provider.provide_credentials().await.map_err(|error| unavailable(&causes(&error)))?;
        let identity = credentials.into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region(&self.config))
            .name("ssm")
            .time(now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unavailable(&causes(&error)))?
            .into();
        let headers =
            [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", "AmazonSSM.GetParameter")];
        let signable = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", &self.endpoint, headers.into_iter(), signable);
        let signature = signable.and_then(|signable| sign(signable, &params));
        let (signature, _) = signature.map_err(|error| unavailable(&causes(&error)))?.into_parts();
        let (signed, _) = signature.into_parts();
        let mut request = HttpRequest::new(body.into());
        let made = request.set_method("POST").and_then(|()| request.set_uri(self.endpoint.as_str()));
        made.map_err(|error| unavailable(&causes(&error)))?;
        let signed = signed.iter().map(|header| (header.name(), header.value()));
        for (name, value) in headers.into_iter().chain(signed) {
            let inserted = request.headers_mut().try_insert(name.to_owned(), value.to_owned());
            inserted.map_err(|error| unavailable(&causes(&error)))?;
        }
        Ok(request)
    }
}

impl Secret {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    parameter: Parameter,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parameter {
    value: String,
}

/// <https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html#operation-error-serialization>
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    #[serde(rename = "__type")]
    kind: String,
    message: String,
    /// Services differ in how they write it.
    #[serde(rename = "Message")]
    upper_case_message: String,
}

async fn understood(answer: HttpResponse) -> Result<Secret, Failure> {
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|error| unavailable(&error.to_string()))?;
    let body = Zeroizing::new(body.to_bytes().to_vec());
    if status == 200 {
        // What does not parse is not shown: it may be the secret.
        let answer = serde_json::from_slice::<Answer>(&body);
        return answer
            .map(|answer| Secret(Zeroizing::new(answer.parameter.value)))
            .map_err(|_| unavailable("an answer without a value"));
    }
    let Refusal { kind, message, upper_case_message } = serde_json::from_slice(&body).unwrap_or_default();
    // With its namespace before, and maybe an address behind.
    let code = kind.rsplit('#').next().and_then(|kind| kind.split(':').next()).unwrap_or_default();
    if code.is_empty() {
        return Err(unavailable(&format!("an answer with status {status}")));
    }
    let message = if message.is_empty() { upper_case_message } else { message };
    Err(of_code(ACTION, code, &message))
}

/// A signature holds for some minutes of its time.
#[expect(clippy::disallowed_methods, reason = "the service compares it with the time there")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn region(config: &SdkConfig) -> &str {
    config.region().map_or("", |region| region.as_ref())
}

/// As a policy names it; the account is this one.
fn arn(region: &str, name: &str) -> String {
    let partition = match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    };
    format!("arn:{partition}:ssm:{region}:*:parameter/{}", name.trim_start_matches('/'))
}

fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

fn unavailable(reason: &str) -> Failure {
    Failure::Unavailable { action: ACTION, reason: reason.to_owned() }
}

const ACTION: &str = "ssm:GetParameter";

/// Bytes: a value has 8 KiB at most, and its frame is small.
const LONGEST_ANSWER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_not_shown() {
        let secret = Secret(Zeroizing::new("4f1d".to_owned()));
        assert_eq!((format!("{secret:?}").as_str(), secret.as_str()), ("Secret", "4f1d"));
    }

    #[test]
    fn parameters_are_named_as_policies_name_them() {
        assert_eq!(arn("eu-west-1", "/egret/peer-key"), "arn:aws:ssm:eu-west-1:*:parameter/egret/peer-key");
        assert_eq!(arn("cn-north-1", "key"), "arn:aws-cn:ssm:cn-north-1:*:parameter/key");
    }
}

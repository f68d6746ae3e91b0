#include "sluice/runtime/service/client.h"

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/service/clock.h"

SLUICE_BEGIN_NAMESPACE
absl::Status StatusOf(const v1::Error& e) {
  switch (e.code()) {
    case v1::OK:
      return absl::OkStatus();
    case v1::INVALID_ARGUMENT:
      return absl::InvalidArgumentError(e.text());
    case v1::NOT_FOUND:
      return absl::NotFoundError(e.text());
    case v1::DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError(e.text());
    case v1::OVERLOADED:
    case v1::RATE_LIMITED:
      return absl::ResourceExhaustedError(e.text());
    case v1::UNAVAILABLE:
      return absl::UnavailableError(e.text());
    case v1::UNIMPLEMENTED:
      return absl::UnimplementedError(e.text());
    case v1::UNAUTHENTICATED:
      return absl::UnauthenticatedError(e.text());
    case v1::FAILED_PRECONDITION:
      return absl::FailedPreconditionError(e.text());
    default:
      return absl::InternalError(e.text());
  }
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& endpoint,
                                                        Options options) {
  std::unique_ptr<Client> c(new Client);
  c->options_ = std::move(options);
  try {
    c->socket_ = zmq::socket_t(c->context_, zmq::socket_type::dealer);
    c->socket_.set(zmq::sockopt::linger, 0);
    c->socket_.set(zmq::sockopt::reconnect_ivl, 20);
    c->socket_.set(zmq::sockopt::reconnect_ivl_max, 1000);
    c->socket_.set(zmq::sockopt::ipv6, true);
    c->socket_.set(zmq::sockopt::sndhwm, 100000);
    c->socket_.set(zmq::sockopt::rcvhwm, 100000);
    if (!c->options_.server_key.empty()) {
      c->socket_.set(zmq::sockopt::curve_serverkey, c->options_.server_key);
      c->socket_.set(zmq::sockopt::curve_publickey, c->options_.keys.public_key);
      c->socket_.set(zmq::sockopt::curve_secretkey, c->options_.keys.secret);
    }
    c->socket_.connect(endpoint);
  } catch (const zmq::error_t& e) {
    return absl::InvalidArgumentError(absl::StrCat("endpoint ", endpoint, ": ", e.what()));
  }
  return c;
}

absl::Status Client::Send(v1::Request& request) {
  request.set_version(1);
  request.set_request_id(next_++);
  try {
    zmq::message_t m(request.ByteSizeLong());
    request.SerializeWithCachedSizesToArray(m.data<uint8_t>());
    if (!socket_.send(m, zmq::send_flags::dontwait))
      return absl::ResourceExhaustedError("the send queue is full");
  } catch (const zmq::error_t& e) {
    return absl::UnavailableError(e.what());
  }
  return absl::OkStatus();
}
absl::StatusOr<v1::Response> Client::Receive(std::chrono::milliseconds timeout) {
  try {
    zmq::message_t m;
    if (!socket_.recv(m, zmq::recv_flags::dontwait)) {
      // A receive that waits asks the system half as often as a poll and a receive.
      socket_.set(zmq::sockopt::rcvtimeo, static_cast<int>(timeout.count()));
      if (!socket_.recv(m))
        return absl::DeadlineExceededError(absl::StrCat("no answer in ", timeout.count(), " ms"));
    }
    v1::Response r;
    if (!r.ParseFromArray(m.data(), static_cast<int>(m.size())))
      return absl::DataLossError("the answer is no sluice.v1.Response");
    return r;
  } catch (const zmq::error_t& e) {
    return absl::UnavailableError(e.what());
  }
}
absl::StatusOr<v1::Response> Client::Call(v1::Request request) {
  const int tries =
      request.has_route() || request.has_set_policy() ? 1 : std::max(1, options_.tries);
  absl::Status last;
  const bool own_deadline = request.deadline_unix_ms() != 0;
  for (int i = 0; i < tries; ++i) {
    if (!own_deadline) request.set_deadline_unix_ms(UnixMs() + options_.timeout.count());
    SLUICE_RETURN_IF_ERROR(Send(request));
    const auto until = std::chrono::steady_clock::now() + options_.timeout;
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          until - std::chrono::steady_clock::now());
      absl::StatusOr<v1::Response> r = Receive(std::max(left, std::chrono::milliseconds(0)));
      if (!r.ok()) {
        last = r.status();
        break;
      }
      if (r->request_id() != request.request_id()) continue;  // of a try that was given up
      if (r->has_error()) return StatusOf(r->error());
      return r;
    }
  }
  return last;
}
absl::StatusOr<v1::Decision> Client::Route(const v1::Query& query) {
  v1::Request q;
  *q.mutable_route()->add_queries() = query;
  SLUICE_ASSIGN_OR_RETURN(v1::Response r, Call(std::move(q)));
  if (r.route().decisions_size() != 1) return absl::InternalError("the answer holds no decision");
  if (r.route().decisions(0).has_error()) return StatusOf(r.route().decisions(0).error());
  return std::move(*r.mutable_route()->mutable_decisions(0));
}
absl::StatusOr<v1::FeedbackResult> Client::Feedback(const v1::Outcome& outcome) {
  v1::Request q;
  *q.mutable_feedback()->add_outcomes() = outcome;
  SLUICE_ASSIGN_OR_RETURN(v1::Response r, Call(std::move(q)));
  if (r.feedback().results_size() != 1) return absl::InternalError("the answer holds no result");
  return r.feedback().results(0);
}
SLUICE_END_NAMESPACE

#ifndef SLUICE_RUNTIME_SERVICE_HTTP_JSON_H_
#define SLUICE_RUNTIME_SERVICE_HTTP_JSON_H_
// JSON of the HTTP side: any message of sluice.v1 by its field names, and the body of a chat
// completion as a query. What is wrong is refused by its path: "queries[0].task: number; allowed:
// string".
#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
using Json = nlohmann::json;

// An object of UTF-8 text, nested at most 32 deep, of finite numbers.
absl::StatusOr<Json> ParseObject(absl::string_view text);

// Fields by their names in the .proto file or in camelCase; null is absent, bytes are base64, whole
// numbers of 64 bits may be strings. Unknown fields, numbers out of range and other types are
// errors.
absl::Status ReadMessage(const Json& json, google::protobuf::Message* message);
// All fields that are not optional, with their defaults, in their order. 64-bit whole numbers are
// strings, as JavaScript would round them; what is infinite is "Infinity", and bytes of a text that
// are no UTF-8 are replaced.
std::string MessageJson(const google::protobuf::Message& message);
std::string TextJson(absl::string_view text);
std::string NumberJson(double value);
// {"error": {"code", "message", "retry_after_s"}}; retry_after_s is 0 where asking again does not
// help or nobody knows when.
std::string ErrorBody(absl::string_view code, absl::string_view message, double retry_after_s = 0);

// The bodies of /v1/route and /v1/feedback: a request, or one of what it holds many of.
absl::Status ReadRoute(absl::string_view body, v1::RouteRequest* request, bool* single);
absl::Status ReadFeedback(absl::string_view body, v1::FeedbackRequest* request, bool* single);
absl::Status ReadExplain(absl::string_view body, v1::ExplainRequest* request);

// What the body of an OpenAI chat completion asks for. Fields that are not read here are not
// looked at: clients send many.
struct ChatQuery {
  v1::Query query;
  std::string text;  // of the last message of the user's, for servers that read the task of it
};
absl::StatusOr<ChatQuery> ReadChat(absl::string_view body);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HTTP_JSON_H_

// Bodies and heads of HTTP requests. A body that is read prints as JSON that reads back to the same
// message; a refusal is JSON too, whatever it quotes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "sluice/runtime/service/http_connections.h"
#include "sluice/runtime/service/http_json.h"

namespace {
using sluice::Json;

template <class T>
void ReadsBack(const T& message) {
  const auto json = sluice::ParseObject(sluice::MessageJson(message));
  T again;
  if (!json.ok() || !sluice::ReadMessage(*json, &again).ok() ||
      again.SerializeAsString() != message.SerializeAsString())
    std::abort();
}
void IsJson(const absl::Status& refused) {
  if (!Json::accept(sluice::ErrorBody("INVALID_ARGUMENT", refused.message()))) std::abort();
}
template <class T>
void Body(const std::string& text, absl::Status (*read)(absl::string_view, T*, bool*)) {
  T message;
  bool single = false;
  const absl::Status status = read(text, &message, &single);
  if (!status.ok()) return IsJson(status);
  ReadsBack(message);
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 5) {
    case 0:
      Body(text, &sluice::ReadRoute);
      break;
    case 1:
      Body(text, &sluice::ReadFeedback);
      break;
    case 2: {
      sluice::v1::ExplainRequest q;
      const absl::Status status = sluice::ReadExplain(text, &q);
      if (!status.ok()) IsJson(status);
      break;
    }
    case 3: {
      const auto chat = sluice::ReadChat(text);
      if (!chat.ok()) {
        IsJson(chat.status());
        break;
      }
      ReadsBack(chat->query);
      break;
    }
    default: {
      const sluice::HttpShape whole = sluice::MeasureHttp(text);
      // What was whole stays so, whatever comes after it.
      if (whole.state != sluice::HttpShape::kWhole) break;
      const sluice::HttpShape more = sluice::MeasureHttp(text + "\r\nGET");
      if (more.head != whole.head || more.body != whole.body) std::abort();
    }
  }
  return 0;
}

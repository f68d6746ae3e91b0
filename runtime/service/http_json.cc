#include "sluice/runtime/service/http_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int kMostDeep = 32;
constexpr size_t kMostShown = 40;  // of what was given, in an error

absl::Status Refuse(absl::string_view path, absl::string_view given, absl::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat(path.empty() ? "the body" : path, ": ", given, "; allowed: ", allowed));
}
std::string Shown(absl::string_view text) {
  if (text.size() <= kMostShown) return absl::StrCat("'", text, "'");
  return absl::StrCat("'", text.substr(0, kMostShown), "...'");
}
std::string Below(absl::string_view path, absl::string_view name) {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}
// Of brackets outside strings: counted before a parser builds anything.
bool TooDeep(absl::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
      continue;
    }
    if (c == '"') quoted = true;
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (depth > kMostDeep) return true;
  }
  return false;
}
const char* TypeName(const Json& j) { return j.is_number() ? "number" : j.type_name(); }

// A whole number, given as one or as its digits.
template <class T>
absl::Status ReadWhole(const Json& j, const std::string& path, T* out) {
  const std::string allowed = absl::StrCat("a whole number from ", std::numeric_limits<T>::min(),
                                           " to ", std::numeric_limits<T>::max());
  if (j.is_string()) {
    const std::string& text = j.get_ref<const std::string&>();
    // SimpleAtoi takes spaces and a plus; JSON's numbers have neither.
    const bool plain = !text.empty() && text.find_first_not_of("-0123456789") == text.npos;
    if (!plain || !absl::SimpleAtoi(text, out)) return Refuse(path, Shown(text), allowed);
    return absl::OkStatus();
  }
  if (!j.is_number()) return Refuse(path, TypeName(j), allowed);
  if (j.is_number_unsigned()) {
    const uint64_t value = j.get<uint64_t>();
    if (value > static_cast<uint64_t>(std::numeric_limits<T>::max()))
      return Refuse(path, absl::StrCat(value), allowed);
    *out = static_cast<T>(value);
    return absl::OkStatus();
  }
  if (j.is_number_integer()) {
    const int64_t value = j.get<int64_t>();
    if (std::is_unsigned_v<T> || value < static_cast<int64_t>(std::numeric_limits<T>::min()))
      return Refuse(path, absl::StrCat(value), allowed);
    *out = static_cast<T>(value);
    return absl::OkStatus();
  }
  const double value = j.get<double>();
  // Below 2^53 a double is the number that was written.
  if (value != std::floor(value) || std::abs(value) >= 9007199254740992.0 ||
      value < static_cast<double>(std::numeric_limits<T>::min()) ||
      value > static_cast<double>(std::numeric_limits<T>::max()))
    return Refuse(path, absl::StrCat(value), allowed);
  *out = static_cast<T>(value);
  return absl::OkStatus();
}
absl::Status ReadNumber(const Json& j, const std::string& path, double most, double* out) {
  if (!j.is_number()) return Refuse(path, TypeName(j), "number");
  *out = j.get<double>();
  if (!(std::abs(*out) <= most))
    return Refuse(path, absl::StrCat(*out), absl::StrCat("a number from ", -most, " to ", most));
  return absl::OkStatus();
}
absl::Status ReadText(const Json& j, const std::string& path, std::string* out) {
  if (!j.is_string()) return Refuse(path, TypeName(j), "string");
  *out = j.get_ref<const std::string&>();
  return absl::OkStatus();
}
absl::Status ReadBytes(const Json& j, const std::string& path, std::string* out) {
  if (!j.is_string()) return Refuse(path, TypeName(j), "base64 as a string");
  const std::string& text = j.get_ref<const std::string&>();
  if (absl::Base64Unescape(text, out) || absl::WebSafeBase64Unescape(text, out))
    return absl::OkStatus();
  return Refuse(path, Shown(text), "base64");
}
absl::Status ReadEnum(const Json& j, const std::string& path, const FieldDescriptor& f, int* out) {
  const google::protobuf::EnumDescriptor& type = *f.enum_type();
  std::string known;
  for (int i = 0; i < type.value_count(); ++i)
    absl::StrAppend(&known, i > 0 ? ", " : "", type.value(i)->name());
  const google::protobuf::EnumValueDescriptor* value = nullptr;
  if (j.is_string()) value = type.FindValueByName(j.get_ref<const std::string&>());
  if (value == nullptr)
    return Refuse(path, j.is_string() ? Shown(j.get_ref<const std::string&>()) : TypeName(j),
                  known);
  *out = value->number();
  return absl::OkStatus();
}

// Sets or adds one value of a field.
class Writer {
 public:
  Writer(Message* message, const FieldDescriptor* field)
      : message_(message), field_(field), reflection_(message->GetReflection()) {}

  absl::Status Read(const Json& j, const std::string& path);

 private:
  template <class T>
  absl::Status Whole(const Json& j, const std::string& path,
                     void (Reflection::*set)(Message*, const FieldDescriptor*, T) const,
                     void (Reflection::*add)(Message*, const FieldDescriptor*, T) const) {
    T value = 0;
    SLUICE_RETURN_IF_ERROR(ReadWhole<T>(j, path, &value));
    (reflection_->*(field_->is_repeated() ? add : set))(message_, field_, value);
    return absl::OkStatus();
  }
  void SetText(std::string value) {
    if (field_->is_repeated()) {
      reflection_->AddString(message_, field_, std::move(value));
    } else {
      reflection_->SetString(message_, field_, std::move(value));
    }
  }
  void SetNumber(double value) {
    const bool many = field_->is_repeated();
    if (field_->cpp_type() == FieldDescriptor::CPPTYPE_FLOAT) {
      const auto narrow = static_cast<float>(value);
      if (many) return reflection_->AddFloat(message_, field_, narrow);
      return reflection_->SetFloat(message_, field_, narrow);
    }
    if (many) return reflection_->AddDouble(message_, field_, value);
    reflection_->SetDouble(message_, field_, value);
  }
  absl::Status Truth(const Json& j, const std::string& path) {
    if (!j.is_boolean()) return Refuse(path, TypeName(j), "true or false");
    if (field_->is_repeated()) {
      reflection_->AddBool(message_, field_, j.get<bool>());
    } else {
      reflection_->SetBool(message_, field_, j.get<bool>());
    }
    return absl::OkStatus();
  }

  Message* message_;
  const FieldDescriptor* field_;
  const Reflection* reflection_;
};

absl::Status ReadInto(const Json& json, const std::string& path, Message* message);

absl::Status Writer::Read(const Json& j, const std::string& path) {
  constexpr double kMost[] = {std::numeric_limits<float>::max(),
                              std::numeric_limits<double>::max()};
  switch (field_->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return Whole<int32_t>(j, path, &Reflection::SetInt32, &Reflection::AddInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return Whole<int64_t>(j, path, &Reflection::SetInt64, &Reflection::AddInt64);
    case FieldDescriptor::CPPTYPE_UINT32:
      return Whole<uint32_t>(j, path, &Reflection::SetUInt32, &Reflection::AddUInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return Whole<uint64_t>(j, path, &Reflection::SetUInt64, &Reflection::AddUInt64);
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value = 0;
      const bool wide = field_->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE;
      SLUICE_RETURN_IF_ERROR(ReadNumber(j, path, kMost[wide], &value));
      SetNumber(value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      return Truth(j, path);
    case FieldDescriptor::CPPTYPE_ENUM: {
      int value = 0;
      SLUICE_RETURN_IF_ERROR(ReadEnum(j, path, *field_, &value));
      if (field_->is_repeated()) {
        reflection_->AddEnumValue(message_, field_, value);
      } else {
        reflection_->SetEnumValue(message_, field_, value);
      }
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string value;
      const bool bytes = field_->type() == FieldDescriptor::TYPE_BYTES;
      SLUICE_RETURN_IF_ERROR(bytes ? ReadBytes(j, path, &value) : ReadText(j, path, &value));
      SetText(std::move(value));
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ReadInto(j, path,
                      field_->is_repeated() ? reflection_->AddMessage(message_, field_)
                                            : reflection_->MutableMessage(message_, field_));
  }
  return absl::InternalError(absl::StrCat(path, ": a type that is not read"));
}

absl::Status ReadInto(const Json& json, const std::string& path, Message* message) {
  if (!json.is_object()) return Refuse(path, TypeName(json), "object");
  const google::protobuf::Descriptor& type = *message->GetDescriptor();
  std::vector<bool> given(static_cast<size_t>(type.field_count()));
  for (const auto& [name, value] : json.items()) {
    const FieldDescriptor* field = type.FindFieldByName(name);
    if (field == nullptr) field = type.FindFieldByCamelcaseName(name);
    const std::string at = Below(path, name);
    if (field == nullptr) {
      std::string known;
      for (int i = 0; i < type.field_count(); ++i)
        absl::StrAppend(&known, i > 0 ? ", " : "", type.field(i)->name());
      return Refuse(Below(path, Shown(name)), "no such field", known);
    }
    if (value.is_null()) continue;
    if (given[field->index()])
      return Refuse(at, "given twice",
                    absl::StrCat("one of ", field->name(), " and ", field->camelcase_name()));
    given[field->index()] = true;
    Writer writer(message, field);
    if (!field->is_repeated()) {
      SLUICE_RETURN_IF_ERROR(writer.Read(value, at));
      continue;
    }
    if (!value.is_array()) return Refuse(at, TypeName(value), "array");
    for (size_t i = 0; i < value.size(); ++i)
      SLUICE_RETURN_IF_ERROR(writer.Read(value[i], absl::StrCat(at, "[", i, "]")));
  }
  return absl::OkStatus();
}

void AppendText(absl::string_view text, std::string* out) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
  });
  if (plain) {
    absl::StrAppend(out, "\"", text, "\"");
  } else {
    out->append(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace));
  }
}
void AppendNumber(double value, std::string* out) {
  if (!std::isfinite(value)) {
    out->append(std::isnan(value) ? "\"NaN\"" : value > 0 ? "\"Infinity\"" : "\"-Infinity\"");
    return;
  }
  char digits[32];
  out->append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}
void AppendMessage(const Message& message, std::string* out);

// The value of a field, or the one at `i` of a repeated one.
void AppendField(const Message& m, const FieldDescriptor* f, int i, std::string* out) {
  const Reflection& r = *m.GetReflection();
  const bool many = f->is_repeated();
  switch (f->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrAppend(out, many ? r.GetRepeatedInt32(m, f, i) : r.GetInt32(m, f));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrAppend(out, "\"", many ? r.GetRepeatedInt64(m, f, i) : r.GetInt64(m, f),
                             "\"");
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrAppend(out, many ? r.GetRepeatedUInt32(m, f, i) : r.GetUInt32(m, f));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrAppend(out, "\"", many ? r.GetRepeatedUInt64(m, f, i) : r.GetUInt64(m, f),
                             "\"");
    case FieldDescriptor::CPPTYPE_FLOAT:
      return AppendNumber(many ? r.GetRepeatedFloat(m, f, i) : r.GetFloat(m, f), out);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return AppendNumber(many ? r.GetRepeatedDouble(m, f, i) : r.GetDouble(m, f), out);
    case FieldDescriptor::CPPTYPE_BOOL:
      return absl::StrAppend(
          out, (many ? r.GetRepeatedBool(m, f, i) : r.GetBool(m, f)) ? "true" : "false");
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int number = many ? r.GetRepeatedEnumValue(m, f, i) : r.GetEnumValue(m, f);
      const auto* value = f->enum_type()->FindValueByNumber(number);
      if (value == nullptr) return absl::StrAppend(out, number);  // of a newer server
      return AppendText(value->name(), out);
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string scratch;
      const std::string& text = many ? r.GetRepeatedStringReference(m, f, i, &scratch)
                                     : r.GetStringReference(m, f, &scratch);
      const bool bytes = f->type() == FieldDescriptor::TYPE_BYTES;
      return AppendText(bytes ? absl::Base64Escape(text) : text, out);
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return AppendMessage(many ? r.GetRepeatedMessage(m, f, i) : r.GetMessage(m, f), out);
  }
}
void AppendMessage(const Message& message, std::string* out) {
  const google::protobuf::Descriptor& type = *message.GetDescriptor();
  const Reflection& reflection = *message.GetReflection();
  char before = '{';
  for (int n = 0; n < type.field_count(); ++n) {
    const FieldDescriptor* field = type.field(n);
    const bool many = field->is_repeated();
    if (!many && field->has_presence() && !reflection.HasField(message, field)) continue;
    out->push_back(before);
    before = ',';
    absl::StrAppend(out, "\"", field->name(), "\":");
    if (!many) {
      AppendField(message, field, 0, out);
      continue;
    }
    out->push_back('[');
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      if (i > 0) out->push_back(',');
      AppendField(message, field, i, out);
    }
    out->push_back(']');
  }
  out->append(before == '{' ? "{}" : "}");
}

// A request that holds many, or one of them: `many` is the field that the many stand in.
absl::Status ReadManyOrOne(absl::string_view body, const char* many, Message* request,
                           const std::function<Message*()>& one, bool* single) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  *single = !json.contains(many);
  return ReadInto(json, "", *single ? one() : request);
}

// A list as an array of strings, or as one text with commas: OpenAI's metadata holds strings only.
absl::Status ReadList(const Json& j, const std::string& path, std::vector<std::string>* out) {
  if (j.is_string()) {
    for (absl::string_view piece : absl::StrSplit(j.get_ref<const std::string&>(), ',')) {
      piece = absl::StripAsciiWhitespace(piece);
      if (!piece.empty()) out->emplace_back(piece);
    }
    return absl::OkStatus();
  }
  if (!j.is_array())
    return Refuse(path, TypeName(j), "an array of strings, or a string with commas");
  for (size_t i = 0; i < j.size(); ++i)
    SLUICE_RETURN_IF_ERROR(ReadText(j[i], absl::StrCat(path, "[", i, "]"), &out->emplace_back()));
  return absl::OkStatus();
}
absl::Status ReadNumberOrText(const Json& j, const std::string& path, double most, double* out) {
  if (!j.is_string()) return ReadNumber(j, path, most, out);
  const std::string& text = j.get_ref<const std::string&>();
  if (!absl::SimpleAtod(text, out) || !(std::abs(*out) <= most))
    return Refuse(path, Shown(text), absl::StrCat("a number from ", -most, " to ", most));
  return absl::OkStatus();
}
absl::Status ReadFeatures(const Json& j, const std::string& path, v1::Query* query) {
  Json values = j;
  if (j.is_string()) {
    std::vector<std::string> pieces;
    SLUICE_RETURN_IF_ERROR(ReadList(j, path, &pieces));
    values = pieces;
  }
  if (!values.is_array())
    return Refuse(path, TypeName(j), "an array of numbers, or a string with commas");
  for (size_t i = 0; i < values.size(); ++i) {
    double x = 0;
    SLUICE_RETURN_IF_ERROR(ReadNumberOrText(values[i], absl::StrCat(path, "[", i, "]"),
                                            std::numeric_limits<float>::max(), &x));
    query->add_features(static_cast<float>(x));
  }
  return absl::OkStatus();
}
absl::Status ReadMetadata(const Json& metadata, v1::Query* query) {
  if (!metadata.is_object()) return Refuse("metadata", TypeName(metadata), "object");
  for (const auto& [name, value] : metadata.items()) {
    if (value.is_null()) continue;
    const std::string path = "metadata." + name;
    std::vector<std::string> list;
    absl::Status status;
    if (name == "session") status = ReadText(value, path, query->mutable_session());
    if (name == "task") status = ReadText(value, path, query->mutable_task());
    if (name == "previous") status = ReadBytes(value, path, query->mutable_previous());
    if (name == "features") status = ReadFeatures(value, path, query);
    if (name == "max_cost_usd") {
      double usd = 0;
      status = ReadNumberOrText(value, path, std::numeric_limits<double>::max(), &usd);
      query->set_max_cost_usd(usd);
    }
    if (name == "tags" || name == "exclude") status = ReadList(value, path, &list);
    SLUICE_RETURN_IF_ERROR(status);
    for (std::string& text : list)
      *(name == "tags" ? query->add_tag() : query->add_exclude()) = std::move(text);
  }
  return absl::OkStatus();
}
// The text of a message's content: a string, or the text parts of an array.
absl::Status ReadContent(const Json& content, const std::string& path, std::string* text) {
  text->clear();
  if (content.is_null()) return absl::OkStatus();  // of an assistant that called a tool
  if (content.is_string()) {
    *text = content.get_ref<const std::string&>();
    return absl::OkStatus();
  }
  if (!content.is_array()) return Refuse(path, TypeName(content), "string or array of parts");
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string at = absl::StrCat(path, "[", i, "]");
    const Json& part = content[i];
    if (!part.is_object()) return Refuse(at, TypeName(part), "object");
    const auto type = part.find("type");
    if (type == part.end() || !type->is_string())
      return Refuse(at + ".type", type == part.end() ? "absent" : TypeName(*type), "string");
    if (*type != "text") continue;  // images, sound and files have no text
    std::string piece;
    const auto found = part.find("text");
    if (found == part.end()) return Refuse(at + ".text", "absent", "string");
    SLUICE_RETURN_IF_ERROR(ReadText(*found, at + ".text", &piece));
    absl::StrAppend(text, text->empty() ? "" : "\n", piece);
  }
  return absl::OkStatus();
}
absl::Status ReadMessages(const Json& messages, std::string* text) {
  if (!messages.is_array()) return Refuse("messages", TypeName(messages), "array");
  if (messages.empty()) return Refuse("messages", "empty", "one message or more");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string at = absl::StrCat("messages[", i, "]");
    const Json& message = messages[i];
    if (!message.is_object()) return Refuse(at, TypeName(message), "object");
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string())
      return Refuse(at + ".role", role == message.end() ? "absent" : TypeName(*role), "string");
    const auto content = message.find("content");
    std::string said;
    if (content != message.end())
      SLUICE_RETURN_IF_ERROR(ReadContent(*content, at + ".content", &said));
    if (*role == "user") *text = std::move(said);
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<Json> ParseObject(absl::string_view text) {
  if (TooDeep(text))
    return Refuse("", "nested too deeply", absl::StrCat("at most ", kMostDeep, " levels"));
  try {
    Json json = Json::parse(text.begin(), text.end());
    if (!json.is_object()) return Refuse("", TypeName(json), "a JSON object");
    return json;
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, ...": without its own name.
    absl::string_view why = e.what();
    const size_t end = why.find("] ");
    if (end != why.npos) why.remove_prefix(end + 2);
    return absl::InvalidArgumentError(absl::StrCat("the body is no JSON: ", why.substr(0, 200)));
  }
}
absl::Status ReadMessage(const Json& json, Message* message) { return ReadInto(json, "", message); }
std::string MessageJson(const Message& message) {
  std::string out;
  AppendMessage(message, &out);
  return out;
}
std::string TextJson(absl::string_view text) {
  std::string out;
  AppendText(text, &out);
  return out;
}
std::string NumberJson(double value) {
  std::string out;
  AppendNumber(value, &out);
  return out;
}
std::string ErrorBody(absl::string_view code, absl::string_view message, double retry_after_s) {
  return absl::StrCat("{\"error\":{\"code\":", TextJson(code), ",\"message\":", TextJson(message),
                      ",\"retry_after_s\":", NumberJson(retry_after_s), "}}");
}

absl::Status ReadRoute(absl::string_view body, v1::RouteRequest* request, bool* single) {
  return ReadManyOrOne(
      body, "queries", request, [&] { return request->add_queries(); }, single);
}
absl::Status ReadFeedback(absl::string_view body, v1::FeedbackRequest* request, bool* single) {
  return ReadManyOrOne(
      body, "outcomes", request, [&] { return request->add_outcomes(); }, single);
}
absl::Status ReadExplain(absl::string_view body, v1::ExplainRequest* request) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  return ReadInto(json, "", request);
}
absl::StatusOr<ChatQuery> ReadChat(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  ChatQuery chat;
  const auto messages = json.find("messages");
  if (messages == json.end()) return Refuse("messages", "absent", "array");
  SLUICE_RETURN_IF_ERROR(ReadMessages(*messages, &chat.text));
  const std::pair<const char*, bool (*)(const Json&)> kTypes[] = {
      {"string", [](const Json& j) { return j.is_string(); }},
      {"true or false", [](const Json& j) { return j.is_boolean(); }},
      {"number", [](const Json& j) { return j.is_number(); }},
      {"array", [](const Json& j) { return j.is_array(); }},
  };
  const std::pair<const char*, int> kNamed[] = {
      {"model", 0}, {"stream", 1}, {"max_tokens", 2}, {"max_completion_tokens", 2}, {"tools", 3}};
  for (const auto& [name, type] : kNamed) {
    const auto found = json.find(name);
    if (found != json.end() && !found->is_null() && !kTypes[type].second(*found))
      return Refuse(name, TypeName(*found), kTypes[type].first);
  }
  const auto user = json.find("user");
  if (user != json.end() && !user->is_null())
    SLUICE_RETURN_IF_ERROR(ReadText(*user, "user", chat.query.mutable_unit()));
  const auto metadata = json.find("metadata");
  if (metadata != json.end() && !metadata->is_null())
    SLUICE_RETURN_IF_ERROR(ReadMetadata(*metadata, &chat.query));
  return chat;
}
SLUICE_END_NAMESPACE

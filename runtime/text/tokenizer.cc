#include "sluice/runtime/text/tokenizer.h"

#include <array>
#include <cctype>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// GPT-2 writes every byte as a printable code point; this maps the code point back.
std::unordered_map<uint32_t, uint8_t> ByteOfCodePoint() {
  std::unordered_map<uint32_t, uint8_t> m;
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    m[printable ? b : next++] = static_cast<uint8_t>(b);
  }
  return m;
}
bool ToBytes(const std::string& s, const std::unordered_map<uint32_t, uint8_t>& table,
             std::string* out) {
  out->clear();
  for (size_t i = 0; i < s.size();) {
    const uint8_t c = static_cast<uint8_t>(s[i]);
    const size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (i + n > s.size()) return false;
    uint32_t cp = n == 1 ? c : c & (0xFFu >> (n + 1));
    for (size_t k = 1; k < n; ++k) cp = (cp << 6) | (static_cast<uint8_t>(s[i + k]) & 0x3F);
    const auto it = table.find(cp);
    if (it == table.end()) return false;
    out->push_back(static_cast<char>(it->second));
    i += n;
  }
  return true;
}
enum class Kind { kSpace, kLetter, kDigit, kOther };
Kind KindOf(char ch) {
  const unsigned char c = static_cast<unsigned char>(ch);
  if (c >= 0x80 || std::isalpha(c)) return Kind::kLetter;
  if (std::isdigit(c)) return Kind::kDigit;
  if (std::isspace(c)) return Kind::kSpace;
  return Kind::kOther;
}
}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::Load(const Gguf& file) {
  SLUICE_ASSIGN_OR_RETURN(const std::string model, file.Text("tokenizer.ggml.model"));
  if (model != "gpt2")
    return absl::UnimplementedError(
        absl::StrCat("tokenizer '", model, "'; only 'gpt2' (byte-level BPE) is supported"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string>* tokens,
                          file.Texts("tokenizer.ggml.tokens"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string>* merges,
                          file.Texts("tokenizer.ggml.merges"));
  Tokenizer t;
  const auto table = ByteOfCodePoint();
  t.bytes_.resize(tokens->size());
  for (size_t i = 0; i < tokens->size(); ++i) {
    if (!ToBytes((*tokens)[i], table, &t.bytes_[i]))
      t.bytes_[i] = (*tokens)[i];  // special tokens stand for themselves
    t.id_.emplace(t.bytes_[i], static_cast<int32_t>(i));
  }
  for (size_t r = 0; r < merges->size(); ++r) {
    const std::string& m = (*merges)[r];
    const size_t space = m.find(' ');
    std::string a, b;
    if (space == std::string::npos || !ToBytes(m.substr(0, space), table, &a) ||
        !ToBytes(m.substr(space + 1), table, &b)) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", r, " ('", m, "') is not two tokens"));
    }
    const auto ia = t.id_.find(a), ib = t.id_.find(b), ab = t.id_.find(a + b);
    if (ia == t.id_.end() || ib == t.id_.end() || ab == t.id_.end())
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", r, " ('", m, "') names unknown tokens"));
    t.merge_.emplace((static_cast<uint64_t>(ia->second) << 32) | static_cast<uint32_t>(ib->second),
                     std::pair<int32_t, int32_t>(static_cast<int32_t>(r), ab->second));
  }
  for (int b = 0; b < 256; ++b) {
    if (t.id_.count(std::string(1, static_cast<char>(b))) == 0)
      return absl::InvalidArgumentError(absl::StrCat("the vocabulary has no token for byte ", b));
  }
  if (file.Has("tokenizer.ggml.eos_token_id")) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t eos, file.Int("tokenizer.ggml.eos_token_id"));
    t.eos_ = static_cast<int32_t>(eos);
  }
  return t;
}

void Tokenizer::EncodeWord(const std::string& word, std::vector<int32_t>* out) const {
  std::vector<int32_t> ids;
  for (char c : word) ids.push_back(id_.at(std::string(1, c)));
  while (ids.size() > 1) {
    int32_t best = INT32_MAX, result = 0;
    size_t where = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it =
          merge_.find((static_cast<uint64_t>(ids[i]) << 32) | static_cast<uint32_t>(ids[i + 1]));
      if (it != merge_.end() && it->second.first < best) {
        best = it->second.first;
        result = it->second.second;
        where = i;
      }
    }
    if (best == INT32_MAX) break;
    ids[where] = result;
    ids.erase(ids.begin() + static_cast<int64_t>(where) + 1);
  }
  out->insert(out->end(), ids.begin(), ids.end());
}

std::vector<int32_t> Tokenizer::Encode(const std::string& text) const {
  // 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?others|spaces before the last one|spaces
  std::vector<int32_t> out;
  static constexpr std::array<const char*, 7> kEndings = {"'s", "'t",  "'re", "'ve",
                                                          "'m", "'ll", "'d"};
  for (size_t i = 0; i < text.size();) {
    size_t n = 0;
    for (const char* e : kEndings) {
      if (text.compare(i, std::char_traits<char>::length(e), e) == 0) {
        n = std::char_traits<char>::length(e);
        break;
      }
    }
    if (n == 0) {
      const size_t lead =
          text[i] == ' ' && i + 1 < text.size() && KindOf(text[i + 1]) != Kind::kSpace ? 1 : 0;
      const Kind kind = KindOf(text[i + lead]);
      size_t j = i + lead;
      while (j < text.size() && KindOf(text[j]) == kind) ++j;
      n = j - i;
      // A run of spaces leaves its last one to the word that follows.
      if (kind == Kind::kSpace && j < text.size() && n > 1) --n;
    }
    EncodeWord(text.substr(i, n), &out);
    i += n;
  }
  return out;
}
std::string Tokenizer::Decode(const std::vector<int32_t>& ids) const {
  std::string out;
  for (int32_t id : ids) {
    if (id >= 0 && static_cast<size_t>(id) < bytes_.size()) out += bytes_[id];
  }
  return out;
}
absl::StatusOr<std::vector<int32_t>> ReadTokens(const std::string& path, int64_t skip,
                                                int64_t count) {
  std::ifstream f(path, std::ios::binary);
  if (!f) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  std::vector<uint16_t> raw;
  uint16_t t = 0;
  while (f.read(reinterpret_cast<char*>(&t), 2)) raw.push_back(t);
  if (count < 0) count = static_cast<int64_t>(raw.size()) - skip;
  if (count < 0 || skip + count > static_cast<int64_t>(raw.size()))
    return absl::OutOfRangeError(absl::StrCat(path, " holds ", raw.size(), " tokens; asked for [",
                                              skip, ", ", skip + count, ")"));
  return std::vector<int32_t>(raw.begin() + skip, raw.begin() + skip + count);
}
SLUICE_END_NAMESPACE

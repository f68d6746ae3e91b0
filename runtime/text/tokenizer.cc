#include "sluice/runtime/text/tokenizer.h"

#include <array>
#include <cctype>
#include <queue>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/weights/gguf_accepts.h"

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

// What of a file's tokenizer is implemented; another key, or another value, changes the text's
// tokens.
absl::Status CheckKeys(const Gguf& file) {
  GgufAccepts accepts;
  accepts.KeyIs("tokenizer.ggml.model", {std::string("gpt2")})
      .KeyIs("tokenizer.ggml.pre", {std::string("gpt-2")})
      .Key("tokenizer.ggml.tokens")
      .Key("tokenizer.ggml.merges")
      .Key("tokenizer.ggml.token_type")
      .Key("tokenizer.ggml.bos_token_id")
      .Key("tokenizer.ggml.eos_token_id")
      .Key("tokenizer.ggml.unknown_token_id")
      .Key("tokenizer.ggml.padding_token_id")
      .KeyIs("tokenizer.ggml.add_bos_token", {false})
      .KeyIs("tokenizer.ggml.add_eos_token", {false})
      .KeyIs("tokenizer.ggml.add_space_prefix", {false})
      .KeyPrefix("tokenizer.chat_template");  // for conversations; prompts are taken as they are
  return accepts.CheckKeys(file, "tokenizer.");
}
// Ids that stand outside the vocabulary would never be met, or read past its end.
absl::Status CheckIds(const Gguf& file, int64_t tokens) {
  for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}) {
    if (!file.Has(key)) continue;
    SLUICE_ASSIGN_OR_RETURN(const int64_t id, file.Int(key));
    if (id < 0 || id >= tokens)
      return absl::OutOfRangeError(absl::StrCat(key, " is ", id, "; allowed: 0 to ", tokens - 1));
  }
  return absl::OkStatus();
}
// Kinds of tokens as llama.cpp numbers them: normal, control (which no text spells) and unused.
absl::Status CheckTokenTypes(const Gguf& file, const std::vector<std::string>& tokens) {
  const auto it = file.values().find("tokenizer.ggml.token_type");
  if (it == file.values().end()) return absl::OkStatus();
  const auto* types = std::get_if<std::vector<int64_t>>(&it->second);
  if (types == nullptr || types->size() != tokens.size())
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type is not a list of ",
                                                   tokens.size(), " integers, one a token"));
  for (size_t i = 0; i < types->size(); ++i) {
    const int64_t type = (*types)[i];
    if (type != 1 && type != 3 && type != 5)
      return absl::UnimplementedError(
          absl::StrCat("tokenizer.ggml.token_type: token ", i, " ('", tokens[i], "') has type ",
                       type, "; implemented: 1 (normal), 3 (control), 5 (unused)"));
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::Load(const Gguf& file) {
  if (!file.Has("tokenizer.ggml.model"))
    return absl::NotFoundError("the file has no tokenizer: no key 'tokenizer.ggml.model'");
  SLUICE_RETURN_IF_ERROR(CheckKeys(file));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string>* tokens,
                          file.Texts("tokenizer.ggml.tokens"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string>* merges,
                          file.Texts("tokenizer.ggml.merges"));
  if (tokens->empty() || tokens->size() > size_t{INT32_MAX})
    return absl::OutOfRangeError(
        absl::StrCat("a vocabulary of ", tokens->size(), " tokens; allowed: 1 to ", INT32_MAX));
  SLUICE_RETURN_IF_ERROR(CheckIds(file, std::ssize(*tokens)));
  SLUICE_RETURN_IF_ERROR(CheckTokenTypes(file, *tokens));
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
    const auto it = t.id_.find(std::string(1, static_cast<char>(b)));
    if (it == t.id_.end())
      return absl::InvalidArgumentError(absl::StrCat("the vocabulary has no token for byte ", b));
    t.byte_id_[b] = it->second;
  }
  if (file.Has("tokenizer.ggml.eos_token_id")) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t eos, file.Int("tokenizer.ggml.eos_token_id"));
    t.eos_ = static_cast<int32_t>(eos);
  }
  return t;
}

const std::pair<int32_t, int32_t>* Tokenizer::MergeOf(int32_t left, int32_t right) const {
  const auto it = merge_.find((static_cast<uint64_t>(left) << 32) | static_cast<uint32_t>(right));
  return it == merge_.end() ? nullptr : &it->second;
}

// Merges the pair of the lowest rank, the leftmost among equals, until no pair merges. Pairs wait
// in a queue and tokens in a linked list, so that a merge costs the logarithm of the word and not a
// look at all of it. O(n log n).
void Tokenizer::EncodeWord(const std::string& word, std::vector<int32_t>* out) const {
  struct Piece {
    int32_t id = 0;  // < 0: merged into the piece before
    int64_t previous = -1, next = -1;
  };
  struct Pair {
    int32_t rank = 0;
    int64_t at = 0;  // of the left piece
    int32_t left = 0, right = 0, merged = 0;
    bool operator>(const Pair& o) const { return std::tie(rank, at) > std::tie(o.rank, o.at); }
  };
  const int64_t n = std::ssize(word);
  std::vector<Piece> pieces(word.size());
  for (int64_t i = 0; i < n; ++i)
    pieces[i] = {.id = byte_id_[static_cast<unsigned char>(word[i])],
                 .previous = i - 1,
                 .next = i + 1 < n ? i + 1 : -1};
  std::priority_queue<Pair, std::vector<Pair>, std::greater<Pair>> queue;
  const auto offer = [&](int64_t at) {
    if (at < 0 || pieces[at].next < 0) return;
    const int32_t left = pieces[at].id;
    const int32_t right = pieces[pieces[at].next].id;
    if (const auto* merge = MergeOf(left, right))
      queue.push(
          {.rank = merge->first, .at = at, .left = left, .right = right, .merged = merge->second});
  };
  for (int64_t i = 0; i < n; ++i) offer(i);
  while (!queue.empty()) {
    const Pair p = queue.top();
    queue.pop();
    Piece& left = pieces[p.at];
    // Other merges may have taken either piece since; pieces only grow, so equal ids are the pair.
    if (left.id != p.left || left.next < 0 || pieces[left.next].id != p.right) continue;
    Piece& right = pieces[left.next];
    left.id = p.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) pieces[left.next].previous = p.at;
    offer(left.previous);
    offer(p.at);
  }
  for (const Piece& p : pieces) {
    if (p.id >= 0) out->push_back(p.id);
  }
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
SLUICE_END_NAMESPACE

#include "sluice/runtime/text/token_file.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/regular_file.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr absl::string_view kNpyMagic("\x93NUMPY", 6);
constexpr int64_t kMostHeader = 1 << 16;  // bytes; NumPy's own are of 128

// Where a file's ids lie.
struct Layout {
  int64_t begin = 0;  // bytes
  int64_t width = 2;  // bytes an id
  bool is_signed = false;
  int64_t held = 0;  // ids
};

template <class... What>
absl::Status Bad(const std::string& path, const What&... what) {
  return absl::DataLossError(absl::StrCat(path, ": ", what...));
}

absl::StatusOr<Layout> PlainLayout(const std::string& path, const RegularFile& file,
                                   int64_t width) {
  if (file.size() % width != 0)
    return absl::DataLossError(
        absl::StrCat(path, " holds ", file.size(), " bytes; token ids are ", width, " bytes each"));
  return Layout{.width = width, .held = file.size() / width};
}

// The value of `key` in a header such as {'descr': '<u2', 'fortran_order': False, 'shape': (7,), }.
absl::string_view NpyValue(absl::string_view header, absl::string_view key) {
  const std::string quoted = absl::StrCat("'", key, "':");
  const size_t at = header.find(quoted);
  if (at == absl::string_view::npos) return "";
  absl::string_view rest = absl::StripLeadingAsciiWhitespace(header.substr(at + quoted.size()));
  const size_t end = rest.find(absl::StartsWith(rest, "(") ? ')' : ',');
  if (end == absl::string_view::npos) return "";
  return rest.substr(0, end);
}

// Reads descr: byte order, kind, bytes.
absl::Status ReadNpyType(const std::string& path, absl::string_view descr, Layout& layout) {
  const bool quoted = descr.size() == 5 && descr[0] == '\'' && descr[4] == '\'';
  const char order = quoted ? descr[1] : '?';
  const char kind = quoted ? descr[2] : '?';
  const char bytes = quoted ? descr[3] : '?';
  const bool ordered = order == '<' || (order == '|' && bytes == '1');
  const bool sized = bytes == '1' || bytes == '2' || bytes == '4' || bytes == '8';
  if (!ordered || !sized || (kind != 'u' && kind != 'i')) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": an array of ", descr,
        "; allowed: little-endian integers of 1, 2, 4 or 8 bytes ('<u2', '<i4', ...)"));
  }
  layout.width = bytes - '0';
  layout.is_signed = kind == 'i';
  return absl::OkStatus();
}

absl::StatusOr<Layout> NpyLayout(const std::string& path, const RegularFile& file) {
  // Magic, version (two bytes), length of the header (two bytes, four since version 2).
  unsigned char begin[12] = {};
  SLUICE_RETURN_IF_ERROR(file.Read(0, std::min<int64_t>(file.size(), 12), begin));
  const int version = begin[6];
  if (file.size() < 12 || version < 1 || version > 3)
    return Bad(path, "a .npy file of version ", version, "; allowed: 1 to 3, with a header");
  Layout layout;
  layout.begin = version == 1 ? 10 : 12;
  int64_t length = begin[8] + 256 * begin[9];
  if (version > 1) length += (int64_t{begin[10]} << 16) + (int64_t{begin[11]} << 24);
  if (length > kMostHeader || length > file.size() - layout.begin)
    return Bad(path, "its header claims ", length, " bytes of ", file.size() - layout.begin,
               "; allowed: at most ", kMostHeader);
  std::string header(static_cast<size_t>(length), ' ');
  SLUICE_RETURN_IF_ERROR(file.Read(layout.begin, length, header.data()));
  layout.begin += length;

  SLUICE_RETURN_IF_ERROR(ReadNpyType(path, NpyValue(header, "descr"), layout));
  absl::string_view shape = NpyValue(header, "shape");
  const bool tuple = absl::ConsumePrefix(&shape, "(") && absl::ConsumeSuffix(&shape, ",");
  if (!tuple || !absl::SimpleAtoi(shape, &layout.held) || layout.held < 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": an array of shape ",
                                                   NpyValue(header, "shape"),
                                                   "); allowed: one dimension, (N,)"));
  const int64_t bytes = file.size() - layout.begin;
  if (bytes % layout.width != 0 || layout.held != bytes / layout.width)
    return Bad(path, "its header claims ", layout.held, " ids of ", layout.width, " bytes, but ",
               bytes, " bytes follow");
  return layout;
}

absl::StatusOr<Layout> LayoutOf(const std::string& path, const RegularFile& file) {
  if (absl::EndsWith(path, ".u16")) return PlainLayout(path, file, 2);
  if (absl::EndsWith(path, ".u32")) return PlainLayout(path, file, 4);
  char begin[6] = {};
  SLUICE_RETURN_IF_ERROR(file.Read(0, std::min<int64_t>(file.size(), 6), begin));
  if (absl::string_view(begin, 6) == kNpyMagic) return NpyLayout(path, file);
  if (absl::EndsWith(path, ".npy")) return Bad(path, "does not begin as a .npy file does");
  return PlainLayout(path, file, 2);
}

// An id; what is negative comes out as larger than any.
uint64_t IdAt(const char* from, const Layout& layout) {
  uint64_t id = 0;
  for (int64_t b = layout.width; b-- > 0;) id = id << 8 | static_cast<unsigned char>(from[b]);
  const bool negative = layout.is_signed && (id >> (8 * layout.width - 1)) != 0;
  return negative ? UINT64_MAX : id;
}
}  // namespace

bool IsTokenFile(const std::string& path) {
  return absl::EndsWith(path, ".u16") || absl::EndsWith(path, ".u32") ||
         absl::EndsWith(path, ".npy");
}

absl::StatusOr<std::vector<int32_t>> ReadTokens(const std::string& path, int64_t skip,
                                                int64_t count) {
  SLUICE_ASSIGN_OR_RETURN(const RegularFile file, RegularFile::Open(path));
  SLUICE_ASSIGN_OR_RETURN(const Layout layout, LayoutOf(path, file));
  const int64_t held = layout.held;
  if (held == 0) return absl::DataLossError(absl::StrCat(path, " holds no tokens"));
  // Differences, since a sum of two large counts overflows.
  const bool begins = skip >= 0 && skip <= held;
  if (!begins || count > held - skip)
    return absl::OutOfRangeError(absl::StrCat(path, " holds ", held, " tokens; asked for ",
                                              count < 0 ? "all" : absl::StrCat(count), " after ",
                                              skip));
  if (count < 0) count = held - skip;
  std::vector<char> raw(count * layout.width);
  SLUICE_RETURN_IF_ERROR(
      file.Read(layout.begin + skip * layout.width, count * layout.width, raw.data()));

  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t id = IdAt(raw.data() + i * layout.width, layout);
    if (id > INT32_MAX)
      return absl::InvalidArgumentError(absl::StrCat(path, ": what stands at ", skip + i,
                                                     " is no token id; allowed: 0 to ", INT32_MAX));
    ids[i] = static_cast<int32_t>(id);
  }
  return ids;
}
SLUICE_END_NAMESPACE

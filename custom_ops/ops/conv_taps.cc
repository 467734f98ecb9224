#include "ops/conv_taps.h"

namespace binarize {
namespace {

std::vector<TapRun> tap_runs(const ConvGeometry& g, int axis) {
  const int64_t kernel = g.kernel[axis], dilation = g.dilations[axis], last = (kernel - 1) * dilation;
  const auto taps_before = [&](int64_t distance) {  // taps whose offset is less than `distance`
    if (distance <= 0) return int32_t{0};
    return static_cast<int32_t>(distance > last ? kernel : ceil_div(distance, dilation));
  };
  std::vector<TapRun> runs;
  for (int64_t i = 0; i < g.out[axis]; ++i) {
    const int64_t pad = g.pads[axis] - i * g.strides[axis];
    const int32_t begin = taps_before(pad), end = taps_before(pad + g.in[axis]);
    // Both ends only fall: no range returns.
    if (runs.empty() || runs.back().tap_begin != begin || runs.back().tap_end != end)
      runs.push_back({i, i, begin, end});
    ++runs.back().end;
  }
  return runs;
}

// The run that an output is in.
size_t run_of(const std::vector<TapRun>& runs, int64_t output) {
  const auto after = [](int64_t i, const TapRun& run) { return i < run.first; };
  return static_cast<size_t>(std::upper_bound(runs.begin(), runs.end(), output, after) - runs.begin()) - 1;
}

}  // namespace

ConvTaps::ConvTaps(const ConvGeometry& geometry, int64_t chunk)
    : geometry_(geometry), chunk_(chunk), row_runs_(tap_runs(geometry, 0)), column_runs_(tap_runs(geometry, 1)) {
  const ConvGeometry& g = geometry_;
  const auto count = [](const std::vector<TapRun>& runs) { return static_cast<int64_t>(runs.size()); };
  const int64_t classes = checked_product(count(row_runs_), count(column_runs_), "the border classes");
  most_groups_ = std::min(chunk, classes);
  int64_t rows = 0, columns = 0;  // of the taps that the lists have
  for (const TapRun& run : row_runs_) rows = std::max<int64_t>(rows, run.taps());
  for (const TapRun& run : column_runs_) columns += run.taps();
  const int64_t taps = checked_product(rows, columns, "the taps of the border classes");
  checked_product(taps, g.words, "the taps of the border classes");
  const int64_t pairs_of_tap = g.paired ? g.words / 2 : 0, words_of_tap = g.words - 2 * pairs_of_tap;

  // One piece of memory for all tables.
  const int64_t groups = chunks() * most_groups_, pairs = taps * pairs_of_tap, words = taps * words_of_tap;
  const auto bytes = [](size_t size, int64_t n) { return static_cast<int64_t>(size) * n; };
  memory_ = aligned_array<char>(bytes(sizeof(Class), classes) + bytes(sizeof(Group), groups) +
                                bytes(sizeof(XnorPair), pairs) + bytes(sizeof(XnorWord), words) +
                                bytes(sizeof(int32_t), 2 * g.pixels() + chunks()));
  classes_ = reinterpret_cast<Class*>(memory_.get());
  groups_ = reinterpret_cast<Group*>(classes_ + classes);
  XnorPair* pair = reinterpret_cast<XnorPair*>(groups_ + groups);
  XnorWord* word = reinterpret_cast<XnorWord*>(pair + pairs);
  row_offset_ = reinterpret_cast<int32_t*>(word + words);
  row_place_ = row_offset_ + g.pixels();
  group_count_ = row_place_ + g.pixels();

  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  for (size_t h = 0; h < column_runs_.size(); ++h) {
    const TapRun& run = column_runs_[h];
    for (size_t v = 0; v < row_runs_.size(); ++v) {
      const int64_t seen = row_runs_[v].taps() * run.taps();
      const int64_t first_tap = seen ? row_runs_[v].tap_begin * g.kernel[1] + run.tap_begin : 0;
      classes_[v * column_runs_.size() + h] = {pair, word, narrow(seen * pairs_of_tap), narrow(seen * words_of_tap),
                                               first_tap * g.words * kWordBits};
    }
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < run.taps(); ++x) {
        int64_t at = y * g.dilations[0] * g.in[1] + x * g.dilations[1];
        int64_t w = (y * g.kernel[1] + x) * g.words * kWordBits;
        for (int64_t i = 0; i < pairs_of_tap; ++i, at += 2 * g.plane(), w += 2 * kWordBits)
          *pair++ = {narrow(at), narrow(at + g.plane()), narrow(w)};
        for (int64_t i = 0; i < words_of_tap; ++i, at += g.plane(), w += kWordBits) *word++ = {narrow(at), narrow(w)};
      }
  }
}

void ConvTaps::fill(int64_t chunk) const {
  const ConvGeometry& g = geometry_;
  const int64_t begin = chunk * chunk_, end = begin + pixels_of(chunk), width = g.out[1];
  const int64_t first_row = begin / width, last_row = (end - 1) / width;
  Group* const groups = groups_ + chunk * most_groups_;
  Group* group = groups;
  int64_t at = begin;
  for (size_t v = run_of(row_runs_, first_row); v < row_runs_.size() && row_runs_[v].first <= last_row; ++v) {
    const TapRun& rows = row_runs_[v];
    const int64_t top = std::max(rows.first, first_row), bottom = std::min(rows.end, last_row + 1);
    const bool one_row = bottom - top == 1;
    const int64_t left = one_row ? std::max<int64_t>(0, begin - top * width) : 0;
    const int64_t right = one_row ? std::min(width, end - top * width) : width;
    for (size_t h = run_of(column_runs_, left); h < column_runs_.size() && column_runs_[h].first < right; ++h) {
      const TapRun& columns = column_runs_[h];
      const bool reads = rows.taps() && columns.taps();
      const int32_t step = reads ? static_cast<int32_t>(g.strides[1]) : 0;
      const int64_t first = at;
      for (int64_t y = top; y < bottom; ++y) {
        const int64_t x = std::max(columns.first, begin - y * width),
                      count = std::min(columns.end, end - y * width) - x;
        const int64_t from_y = y * g.strides[0] - g.pads[0] + rows.tap_begin * g.dilations[0];
        const int64_t from_x = x * g.strides[1] - g.pads[1] + columns.tap_begin * g.dilations[1];
        const int32_t from = reads && count > 0 ? static_cast<int32_t>(from_y * g.in[1] + from_x) : 0;
        const int32_t place = static_cast<int32_t>(y * width + x - begin);
        int32_t* __restrict offsets = row_offset_ + at;
        int32_t* __restrict places = row_place_ + at;
        for (int32_t i = 0; i < count; ++i) {
          offsets[i] = from + i * step;
          places[i] = place + i;
        }
        at += std::max<int64_t>(count, 0);
      }
      if (at > first)
        *group++ = {static_cast<int32_t>(v * column_runs_.size() + h), static_cast<int32_t>(first),
                    static_cast<int32_t>(at - first)};
    }
  }
  group_count_[chunk] = static_cast<int32_t>(group - groups);
}

}  // namespace binarize

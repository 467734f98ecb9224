// Against a plain loop over unpacked values: activations of 0 to 2^planes - 1 times +-1 weights.
#include "cpu/lookup_accumulate/lookup_accumulate.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

struct Case {
  int32_t planes;
  int64_t channels, taps, rows, blocks;
  bool words_follow;  // of a pixel, as in a matrix; else those of neighbouring pixels do, as in an image
  bool apart;         // taps read every second pixel, else neighbours, whose tables steps may run over
  bool extreme;       // the largest activations, every weight +1: the fullest bytes and 16-bit sums
};

// Row r reads pixels r, r + 1, r + 2, ... or r, r + 2, r + 4, ...
void run(const Case& c, Random& random) {
  const int64_t words = (c.channels + 31) / 32, apart = c.apart ? 2 : 1, filters = c.blocks * kWordBits;
  const int64_t pixels = c.rows + apart * (c.taps - 1);
  const auto bit_of = [](const std::vector<uint32_t>& packed, int64_t word, int64_t channel) {
    return static_cast<int32_t>(packed[static_cast<size_t>(word)] >> channel % 32 & 1);
  };
  const uint32_t tail = c.channels % 32 ? (1u << c.channels % 32) - 1 : ~0u;
  const auto draw = [&](int64_t count, int64_t word_stride) {
    std::vector<uint32_t> out = random.words(count);
    for (int64_t i = 0; i < count; ++i) {
      if (c.extreme) out[static_cast<size_t>(i)] = ~0u;
      if (i / word_stride % words == words - 1) out[static_cast<size_t>(i)] &= tail;
    }
    return out;
  };
  const int64_t word_stride = c.words_follow ? 1 : pixels, pixel_stride = c.words_follow ? c.planes * words : 1;
  const int64_t plane_stride = c.words_follow ? words : words * pixels;
  const std::vector<uint32_t> x = draw(c.planes * words * pixels, word_stride);
  const std::vector<uint32_t> w = draw(filters * c.taps * words, 1);  // [filters][taps][words]

  std::vector<int32_t> expected, sums;
  for (int64_t block = 0; block < c.blocks; ++block)
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t o = 0; o < kWordBits; ++o) {
        int32_t acc = 0;
        for (int64_t t = 0; t < c.taps; ++t)
          for (int64_t channel = 0; channel < c.channels; ++channel) {
            int32_t level = 0;
            for (int32_t p = 0; p < c.planes; ++p)
              level +=
                  bit_of(x, p * plane_stride + channel / 32 * word_stride + (r + apart * t) * pixel_stride, channel)
                  << p;
            const int64_t filter = block * kWordBits + o;
            acc += bit_of(w, (filter * c.taps + t) * words + channel / 32, channel) ? level : -level;
          }
        expected.push_back(acc);
      }
  for (int64_t i = 0; i < pixels; ++i) {
    int32_t sum = 0;
    for (int32_t p = 0; p < c.planes; ++p)
      for (int64_t channel = 0; channel < c.channels; ++channel)
        sum += bit_of(x, p * plane_stride + channel / 32 * word_stride + i * pixel_stride, channel) << p;
    sums.push_back(sum);
  }

  const std::string what = ": planes " + std::to_string(c.planes) + ", channels " + std::to_string(c.channels) +
                           ", taps " + std::to_string(c.taps) + ", rows " + std::to_string(c.rows) + ", blocks " +
                           std::to_string(c.blocks) + (c.extreme ? ", extreme" : "");
  const auto look_up = [&](const LookupAccumulateKernel& kernel, const LookupFormat& format,
                           const std::string& variant) {
    const std::string name = variant + ", groups of " + std::to_string(format.group);
    const int64_t pixel_bytes = format.pixel_bytes(c.channels);
    // Behind the tables: what steps may read, and nothing may write.
    std::vector<uint8_t> behind(kLookupStep, 0xa5);
    for (size_t i = 0; i < behind.size(); i += 16) behind[i] = 0;
    std::vector<uint8_t> tables(static_cast<size_t>(pixels * pixel_bytes), 0xa5);
    tables.insert(tables.end(), behind.begin(), behind.end());
    std::vector<int32_t> own_sums(static_cast<size_t>(pixels));
    kernel.tables({x.data(), plane_stride, word_stride, pixel_stride, c.channels, pixels, c.planes, format.group,
                   tables.data(), own_sums.data()});
    expect_same(own_sums, sums, name + ": sums" + what);
    expect_same(std::vector<uint8_t>(tables.end() - kLookupStep, tables.end()), behind,
                name + ": behind tables" + what);

    const int64_t tables_of_tap = format.tables(c.channels), runs = c.apart ? c.taps : 1;
    const int64_t taps = c.taps / runs, steps = format.steps(taps * tables_of_tap), all = steps * runs;
    LookupAccumulateArgs args{};
    args.blocks = c.blocks;
    args.steps = static_cast<int32_t>(all);
    std::vector<uint8_t> indices(static_cast<size_t>(c.blocks * all * format.step_weights()));
    for (int64_t filter = 0; filter < filters; ++filter)
      for (int64_t t = 0; t < c.taps; ++t) {
        const int64_t block = filter / kWordBits, stride = args.weights_stride(block, format.step_weights());
        LookupWeightsArgs weights{};
        weights.words = w.data() + (filter * c.taps + t) * words;
        weights.word_stride = 1;
        weights.channels = c.channels;
        weights.first_table = t % taps * tables_of_tap;
        weights.filter = static_cast<int32_t>(filter % kWordBits);
        weights.w = indices.data() + args.weights_begin(block, format.step_weights()) + t / taps * steps * stride;
        weights.w_stride = stride;
        fill_lookup_weights(format, weights);
      }
    std::vector<int32_t> row_offset, k_offset, start;
    for (int64_t r = 0; r < c.rows; ++r) {
      row_offset.push_back(static_cast<int32_t>(r * pixel_bytes));
      start.push_back(0);
      for (int64_t t = 0; t < c.taps; ++t) start.back() -= sums[static_cast<size_t>(r + apart * t)];
    }
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t step = 0; step < steps; ++step)
        k_offset.push_back(static_cast<int32_t>(run * apart * pixel_bytes + step * kLookupStep));
    const Aligned<uint8_t> aligned(indices);
    const int64_t acc_stride = c.words_follow ? c.blocks * kWordBits : kWordBits;
    const int64_t block_stride = c.words_follow ? kWordBits : c.rows * kWordBits;
    std::vector<int32_t> acc(expected.size());
    args.tables = tables.data();
    args.row_offset = row_offset.data();
    args.k_offset = k_offset.data();
    args.w = aligned.data;
    args.start = start.data();
    args.acc = acc.data();
    args.acc_block_stride = block_stride;
    args.acc_stride = acc_stride;
    args.rows = c.rows;
    args.planes = c.planes;
    args.group = format.group;
    kernel.accumulate(args);
    std::vector<int32_t> in_order;
    for (int64_t i = 0; i < static_cast<int64_t>(acc.size()); ++i)
      in_order.push_back(acc[static_cast<size_t>(i / (c.rows * kWordBits) * block_stride +
                                                 i / kWordBits % c.rows * acc_stride + i % kWordBits)]);
    expect_same(in_order, expected, name + what);
  };
  for_each_runnable(kLookupAccumulateKernels, [&](const LookupAccumulateKernel& kernel, const std::string& name) {
    // What it takes for few taps and, where that is something else, for many: either is right for any.
    const LookupFormat few = kernel.format(c.planes, c.channels, 1),
                       many = kernel.format(c.planes, c.channels, 1 << 20);
    look_up(kernel, few, name);
    if (many.group != few.group) look_up(kernel, many, name);
  });
}

}  // namespace

int main() {
  Random random;
  for (int32_t planes = kMinLookupPlanes; planes <= kMaxLookupPlanes; ++planes) {
    for (int64_t channels : {1, 3, 4, 5, 9, 10, 11, 16, 17, 31, 32, 33, 39, 40, 41, 63, 64, 65, 100, 128, 200, 600})
      for (bool words_follow : {false, true})
        for (bool apart : {false, true})
          for (bool extreme : {false, true}) run({planes, channels, 5, 1, 1, words_follow, apart, extreme}, random);
    for (int64_t rows = 1; rows <= 18; ++rows)
      run({planes, 20, 3, rows, 1 + rows % 3, rows % 2 == 0, false, false}, random);
    for (int64_t blocks = 1; blocks <= 5; ++blocks) run({planes, 33, 2, 8, blocks, false, true, false}, random);
    for (int64_t channels : {16, 32, 64})  // more pixels than are unpacked together
      for (bool words_follow : {false, true}) run({planes, channels, 1, 1100, 1, words_follow, false, false}, random);
    for (int64_t rows : {37, 150}) run({planes, 40, 1, rows, 2, rows == 37, false, false}, random);  // several vectors
    // Up to what a 16-bit sum holds, and beyond: 65535 / 63 is 1040 channels, 65535 / 15 is 4369.
    for (int64_t channels : {1030, 1050, 4370, 4400})
      run({planes, channels, 1, 2, 2, channels % 20 == 0, false, true}, random);
    run({planes, 1100, 9, 1, 1, true, false, true}, random);
  }
  return report("lookup_accumulate");
}

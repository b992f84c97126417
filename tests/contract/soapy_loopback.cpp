// Radios for tests of the SoapySDR driver: devices of one process on an air of their own, in virtual time.
//
// Time stands still while the host works: a device's clock goes on as it reads samples, the air's with the foremost of
// them. What one device sends, every other one at the same carrier and rate receives; nobody receives itself. A stream without times (a repeated frame)
// holds readers up until its samples are there, and its writer once it is far ahead. Arguments: label (device), timed=0
// (no hardware time), rx_only=1, lose=N (the N-th read of a stream reports an overflow and skips 100 samples).

#include <SoapySDR/Device.hpp>
#include <SoapySDR/Errors.hpp>
#include <SoapySDR/Formats.hpp>
#include <SoapySDR/Registry.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <complex>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <vector>

using Sample = std::complex<float>;

struct Burst {
    double start_ns, rate, carrier;
    float amplitude;
    std::vector<Sample> samples;
    double end_ns() const { return start_ns + 1e9 * samples.size() / rate; }
};

class Loopback;

static std::mutex air;
static std::condition_variable changed;
static double now_ns = 1e9;
static std::vector<Loopback *> devices;

class Loopback : public SoapySDR::Device {
public:
    explicit Loopback(const SoapySDR::Kwargs &args) : args_(args) {
        timed_ = get("timed", "1") != "0";
        rx_only_ = get("rx_only", "0") == "1";
        lose_ = std::stoi(get("lose", "0"));
        std::lock_guard<std::mutex> lock(air);
        devices.push_back(this);
    }
    ~Loopback() override {
        std::lock_guard<std::mutex> lock(air);
        devices.erase(std::remove(devices.begin(), devices.end(), this), devices.end());
        changed.notify_all();
    }
    std::string getDriverKey() const override { return "testbed_loopback"; }
    std::string getHardwareKey() const override { return "loopback"; }
    SoapySDR::Kwargs getHardwareInfo() const override { return {{"serial", get("label", "0")}}; }
    size_t getNumChannels(const int direction) const override { return direction == SOAPY_SDR_TX && rx_only_ ? 0 : 1; }
    bool getFullDuplex(const int, const size_t) const override { return true; }
    SoapySDR::RangeList getSampleRateRange(const int, const size_t) const override { return {{0.1e6, 30e6}}; }
    SoapySDR::RangeList getFrequencyRange(const int, const size_t) const override { return {{50e6, 6e9}}; }
    SoapySDR::RangeList getFrequencyRange(const int d, const size_t c, const std::string &) const override {
        return getFrequencyRange(d, c);
    }
    SoapySDR::Range getGainRange(const int, const size_t) const override { return {0, 60}; }
    bool hasGainMode(const int direction, const size_t) const override { return direction == SOAPY_SDR_RX; }
    void setGainMode(const int, const size_t, const bool automatic) override { automatic_ = automatic; }
    bool getGainMode(const int, const size_t) const override { return automatic_; }
    void setGain(const int d, const size_t, const double value) override { gain_[d == SOAPY_SDR_TX] = value; }
    double getGain(const int d, const size_t) const override { return gain_[d == SOAPY_SDR_TX]; }
    void setSampleRate(const int d, const size_t, const double rate) override { rate_[d == SOAPY_SDR_TX] = rate; }
    double getSampleRate(const int d, const size_t) const override { return rate_[d == SOAPY_SDR_TX]; }
    void setFrequency(const int d, const size_t, const double f, const SoapySDR::Kwargs &) override {
        carrier_[d == SOAPY_SDR_TX] = f;
    }
    double getFrequency(const int d, const size_t) const override { return carrier_[d == SOAPY_SDR_TX]; }
    bool hasHardwareTime(const std::string &) const override { return timed_; }
    long long getHardwareTime(const std::string &) const override {
        std::lock_guard<std::mutex> lock(air);
        return (long long)std::llround(clock_ns_);
    }
    size_t getStreamMTU(SoapySDR::Stream *) const override { return 4096; }

    SoapySDR::Stream *setupStream(const int d, const std::string &format, const std::vector<size_t> &,
                                  const SoapySDR::Kwargs &) override {
        if (format != SOAPY_SDR_CF32) throw std::runtime_error("format " + format);
        return (SoapySDR::Stream *)(d == SOAPY_SDR_TX ? &tx_ : &rx_);
    }
    void closeStream(SoapySDR::Stream *stream) override { deactivateStream(stream, 0, 0); }

    int activateStream(SoapySDR::Stream *stream, const int flags, const long long at_ns, const size_t n) override {
        std::lock_guard<std::mutex> lock(air);
        if (stream == (SoapySDR::Stream *)&tx_) return 0;
        if ((flags & SOAPY_SDR_HAS_TIME) && !timed_) return SOAPY_SDR_NOT_SUPPORTED;
        receiving_ = true;
        late_ = (flags & SOAPY_SDR_HAS_TIME) && at_ns < clock_ns_;
        at_ns_ = (flags & SOAPY_SDR_HAS_TIME) ? (double)at_ns : now_ns;
        left_ = (flags & SOAPY_SDR_END_BURST) ? (long long)n : -1;
        reads_ = 0;
        return 0;
    }

    int deactivateStream(SoapySDR::Stream *stream, const int, const long long) override {
        std::lock_guard<std::mutex> lock(air);
        if (stream == (SoapySDR::Stream *)&rx_) {
            receiving_ = false;
            return 0;
        }
        streaming_ = false;  // what was queued is dropped
        for (auto &b : bursts_) {
            const double left = std::max(0.0, (now_ns - b.start_ns) * 1e-9 * b.rate);
            if (left < b.samples.size()) b.samples.resize((size_t)left);
        }
        changed.notify_all();
        return 0;
    }

    int writeStream(SoapySDR::Stream *, const void *const *buffs, const size_t n, int &flags, const long long at_ns,
                    const long timeout_us) override {
        std::unique_lock<std::mutex> lock(air);
        const Sample *in = (const Sample *)buffs[0];
        const bool ends = flags & SOAPY_SDR_END_BURST, has_time = flags & SOAPY_SDR_HAS_TIME;
        if (has_time && !timed_) return SOAPY_SDR_NOT_SUPPORTED;
        if (has_time && at_ns < clock_ns_) {
            status_.push_back(SOAPY_SDR_TIME_ERROR);
            return (int)n;
        }
        if (streaming_ && !changed.wait_for(lock, std::chrono::microseconds(timeout_us),
                                            [&] { return bursts_.back().end_ns() < now_ns + 5e6; }))
            return SOAPY_SDR_TIMEOUT;
        if (!streaming_) {
            const float amplitude = 0.3f * (float)std::pow(10.0, (gain_[1] - 60.0) / 20.0);
            bursts_.push_back({has_time ? (double)at_ns : now_ns, rate_[1], carrier_[1], amplitude, {}});
        }
        streaming_ = !ends;
        const size_t taken = streaming_ ? std::min<size_t>(n, 4096) : n;
        auto &samples = bursts_.back().samples;
        samples.insert(samples.end(), in, in + taken);
        changed.notify_all();
        return (int)taken;
    }

    int readStreamStatus(SoapySDR::Stream *, size_t &, int &, long long &, const long) override {
        std::lock_guard<std::mutex> lock(air);
        if (status_.empty()) return SOAPY_SDR_TIMEOUT;
        const int code = status_.front();
        status_.pop_front();
        return code;
    }

    int readStream(SoapySDR::Stream *, void *const *buffs, const size_t wanted, int &flags, long long &at_ns,
                   const long timeout_us) override {
        std::unique_lock<std::mutex> lock(air);
        if (!receiving_ || left_ == 0) return SOAPY_SDR_TIMEOUT;
        if (late_) return SOAPY_SDR_TIME_ERROR;
        if (lose_ && ++reads_ == lose_) {
            at_ns_ += 100 * 1e9 / rate_[0];
            if (left_ > 0) left_ = std::max(0LL, left_ - 100);
            return SOAPY_SDR_OVERFLOW;
        }
        size_t n = std::min<size_t>(wanted, 4096);
        if (lose_) n = std::min<size_t>(n, 256);
        if (left_ > 0) n = std::min<size_t>(n, (size_t)left_);
        const double end_ns = at_ns_ + 1e9 * n / rate_[0];
        now_ns = std::max(now_ns, at_ns_);
        changed.notify_all();
        const bool there = changed.wait_for(lock, std::chrono::microseconds(timeout_us), [&] {
            return std::all_of(devices.begin(), devices.end(), [&](Loopback *d) {
                return d == this || !d->streaming_ || d->bursts_.back().end_ns() >= end_ns;
            });
        });
        if (!there) return SOAPY_SDR_TIMEOUT;
        Sample *out = (Sample *)buffs[0];
        const float gain = (float)std::pow(10.0, (gain_[0] - 30.0) / 20.0);
        for (size_t i = 0; i < n; i++) out[i] = Sample(noise(), noise());
        for (Loopback *d : devices) {
            if (d == this) continue;
            for (const Burst &b : d->bursts_) add(b, out, n, gain);
            while (!d->bursts_.empty() && !d->streaming_ && d->bursts_.front().end_ns() < now_ns - 1e9)
                d->bursts_.pop_front();
        }
        flags = timed_ ? SOAPY_SDR_HAS_TIME : 0;
        at_ns = std::llround(at_ns_);
        at_ns_ = end_ns;
        now_ns = std::max(now_ns, end_ns);
        clock_ns_ = std::max(clock_ns_, end_ns);
        if (left_ > 0) left_ -= (long long)n;
        changed.notify_all();
        return (int)n;
    }

private:
    void add(const Burst &b, Sample *out, size_t n, float gain) const {
        if (std::abs(b.carrier - carrier_[0]) > 1e3 || std::abs(b.rate - rate_[0]) > 1.0) return;
        const long long first = std::llround((at_ns_ - b.start_ns) * 1e-9 * b.rate);
        const long long size = (long long)b.samples.size();
        for (long long i = std::max(0LL, -first); i < (long long)n && first + i < size; i++)
            out[i] += gain * b.amplitude * b.samples[first + i];
    }
    float noise() {
        seed_ = seed_ * 1664525u + 1013904223u;
        return 1e-4f * ((float)(seed_ >> 8) / 8388608.0f - 1.0f);
    }
    std::string get(const std::string &key, const std::string &other) const {
        auto found = args_.find(key);
        return found == args_.end() ? other : found->second;
    }

    SoapySDR::Kwargs args_;
    bool timed_, rx_only_, automatic_ = true, receiving_ = false, late_ = false, streaming_ = false;
    int lose_, reads_ = 0, tx_ = 0, rx_ = 0;
    double gain_[2] = {0, 0}, rate_[2] = {1e6, 1e6}, carrier_[2] = {1e9, 1e9}, at_ns_ = 0, clock_ns_ = now_ns;
    long long left_ = -1;
    unsigned seed_ = 1;
    std::deque<Burst> bursts_;
    std::deque<int> status_;
};

static SoapySDR::KwargsList find(const SoapySDR::Kwargs &args) {
    auto driver = args.find("driver");
    if (driver == args.end() || driver->second != "testbed_loopback") return {};
    SoapySDR::Kwargs found = args;
    if (!found.count("label")) found["label"] = "0";
    return {found};
}
static SoapySDR::Device *make(const SoapySDR::Kwargs &args) { return new Loopback(args); }
static SoapySDR::Registry registration("testbed_loopback", &find, &make, SOAPY_SDR_ABI_VERSION);

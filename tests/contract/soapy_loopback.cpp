// Radios for tests of the SoapySDR driver: a module whose devices are on the simulated air.
//
// The air itself is Python's (`soapy_air.py`): it registers functions under a device's label, and this module calls
// them with the driver's samples and times. What a device of SoapySDR does between the two is done here: streams,
// pieces of at most 4096 samples, time stamps, bursts that end with their flag, late bursts that are reported
// afterwards, lost samples. A label without an air is a device that can be opened only. Arguments: label (device),
// timed=0 (no hardware time), rx_only=1, lose=N (the N-th read of a stream reports an overflow and skips 100 samples).

#include <SoapySDR/Device.hpp>
#include <SoapySDR/Errors.hpp>
#include <SoapySDR/Formats.hpp>
#include <SoapySDR/Registry.hpp>

#include <algorithm>
#include <cmath>
#include <complex>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

using Sample = std::complex<float>;
static const size_t MTU = 4096;

// Return values are 0 (or a number of samples), or SoapySDR's error codes. A time that is not a number means: now, or
// directly after what came before.
struct Air {
    int (*tune)(double carrier_hz, double rate_hz, double tx_db, double rx_db);
    double (*now_s)();
    int (*burst)(const float *iq, long long n, double at_s);
    int (*write_on)(const float *iq, long long n, double timeout_s);
    int (*read)(float *iq, long long n, double at_s, double *began_s);
    void (*quiet)();
};

static std::mutex guard;
static std::map<std::string, Air> airs;

extern "C" void loopback_wire(const char *label, const Air *air) {
    std::lock_guard<std::mutex> lock(guard);
    if (air) airs[label] = *air;
    else airs.erase(label);
}

class Loopback : public SoapySDR::Device {
public:
    explicit Loopback(const SoapySDR::Kwargs &args) : args_(args) {
        timed_ = get("timed", "1") != "0";
        rx_only_ = get("rx_only", "0") == "1";
        lose_ = std::stoi(get("lose", "0"));
        std::lock_guard<std::mutex> lock(guard);
        const auto found = airs.find(get("label", "0"));
        if ((wired_ = found != airs.end())) air_ = found->second;
    }
    std::string getDriverKey() const override { return "testbed_loopback"; }
    std::string getHardwareKey() const override { return "loopback"; }
    SoapySDR::Kwargs getHardwareInfo() const override { return {{"serial", get("label", "0")}}; }
    size_t getNumChannels(const int direction) const override { return direction == SOAPY_SDR_TX && rx_only_ ? 0 : 1; }
    bool getFullDuplex(const int, const size_t) const override { return false; }
    SoapySDR::RangeList getSampleRateRange(const int, const size_t) const override { return {{0.2e6, 61.44e6}}; }
    SoapySDR::RangeList getFrequencyRange(const int, const size_t) const override { return {{70e6, 6e9}}; }
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
    long long getHardwareTime(const std::string &) const override { return wired_ ? ns(air_.now_s()) : 0; }
    size_t getStreamMTU(SoapySDR::Stream *) const override { return MTU; }

    SoapySDR::Stream *setupStream(const int d, const std::string &format, const std::vector<size_t> &,
                                  const SoapySDR::Kwargs &) override {
        if (format != SOAPY_SDR_CF32) throw std::runtime_error("format " + format);
        if (d == SOAPY_SDR_RX) {  // both directions have their settings by now, as one radio of one carrier and rate
            if (!wired_) throw std::runtime_error("no air for label " + get("label", "0"));
            if (air_.tune(carrier_[0], rate_[0], gain_[1], gain_[0])) throw std::runtime_error("not tuned");
        }
        return (SoapySDR::Stream *)(d == SOAPY_SDR_TX ? &tx_ : &rx_);
    }
    void closeStream(SoapySDR::Stream *stream) override { deactivateStream(stream, 0, 0); }

    int activateStream(SoapySDR::Stream *stream, const int flags, const long long at_ns, const size_t n) override {
        if (stream == (SoapySDR::Stream *)&tx_) return 0;
        const bool has_time = flags & SOAPY_SDR_HAS_TIME;
        if (has_time && !timed_) return SOAPY_SDR_NOT_SUPPORTED;
        late_ = has_time && at_ns < getHardwareTime("");
        at_s_ = has_time ? at_ns * 1e-9 : NAN;
        left_ = (flags & SOAPY_SDR_END_BURST) ? (long long)n : -1;
        held_.clear();
        reads_ = 0;
        receiving_ = true;
        return 0;
    }

    int deactivateStream(SoapySDR::Stream *stream, const int, const long long) override {
        if (stream == (SoapySDR::Stream *)&rx_) {
            receiving_ = false;
        } else {  // what was queued is dropped
            burst_.clear();
            air_.quiet();
        }
        return 0;
    }

    int writeStream(SoapySDR::Stream *, const void *const *buffs, const size_t n, int &flags, const long long at_ns,
                    const long timeout_us) override {
        const Sample *in = (const Sample *)buffs[0];
        const size_t taken = std::min(n, MTU);
        const bool ends = (flags & SOAPY_SDR_END_BURST) && taken == n;  // the flag is the end of the whole buffer
        if ((flags & SOAPY_SDR_HAS_TIME) && !timed_) return SOAPY_SDR_NOT_SUPPORTED;
        if (!(flags & SOAPY_SDR_END_BURST)) return air_.write_on((const float *)in, (long long)taken, timeout_us * 1e-6);
        if (burst_.empty()) burst_at_s_ = (flags & SOAPY_SDR_HAS_TIME) ? at_ns * 1e-9 : NAN;
        burst_.insert(burst_.end(), in, in + taken);
        if (ends) {
            const int code = air_.burst((const float *)burst_.data(), (long long)burst_.size(), burst_at_s_);
            burst_.clear();
            if (code == SOAPY_SDR_TIME_ERROR) status_.push_back(code);  // a device says so afterwards
            else if (code) return code;
        }
        return (int)taken;
    }

    int readStreamStatus(SoapySDR::Stream *, size_t &, int &, long long &, const long) override {
        if (status_.empty()) return SOAPY_SDR_TIMEOUT;
        const int code = status_.front();
        status_.pop_front();
        return code;
    }

    int readStream(SoapySDR::Stream *, void *const *buffs, const size_t wanted, int &flags, long long &at_ns,
                   const long) override {
        if (!receiving_ || (left_ == 0 && held_.empty())) return SOAPY_SDR_TIMEOUT;
        if (late_) return SOAPY_SDR_TIME_ERROR;
        if (held_.empty()) {
            const long long n = left_ > 0 ? left_ : (long long)std::min(wanted, MTU);
            double began_s = 0;
            held_.resize(n);
            const int code = air_.read((float *)held_.data(), n, at_s_, &began_s);
            if (code) {
                held_.clear();
                return code;
            }
            at_s_ = began_s;
            if (left_ > 0) left_ = 0;
        }
        if (lose_ && ++reads_ == lose_) {
            drop(std::min<size_t>(100, held_.size()));
            return SOAPY_SDR_OVERFLOW;
        }
        const size_t n = std::min({wanted, lose_ ? (size_t)256 : MTU, held_.size()});
        std::copy(held_.begin(), held_.begin() + n, (Sample *)buffs[0]);
        flags = timed_ ? SOAPY_SDR_HAS_TIME : 0;
        at_ns = ns(at_s_);
        drop(n);
        return (int)n;
    }

private:
    static long long ns(double s) { return std::llround(s * 1e9); }
    void drop(size_t n) {
        held_.erase(held_.begin(), held_.begin() + n);
        at_s_ += n / rate_[0];
    }
    std::string get(const std::string &key, const std::string &other) const {
        auto found = args_.find(key);
        return found == args_.end() ? other : found->second;
    }

    SoapySDR::Kwargs args_;
    Air air_{};
    bool wired_ = false, timed_, rx_only_, automatic_ = true, receiving_ = false, late_ = false;
    int lose_, reads_ = 0, tx_ = 0, rx_ = 0;
    double gain_[2] = {0, 0}, rate_[2] = {1e6, 1e6}, carrier_[2] = {1e9, 1e9}, at_s_ = NAN, burst_at_s_ = NAN;
    long long left_ = -1;
    std::vector<Sample> held_, burst_;
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

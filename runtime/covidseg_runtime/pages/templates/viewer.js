// The viewer of the page of a scan: NiiVue with the few controls that a reader needs.
// What it shows comes from the element #viewer-settings. Until it has drawn, the picture stands in its place.
(function () {
  "use strict";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const SLICE_AXIS = { all: 2, axial: 2, coronal: 1, sagittal: 0 };
  const SLICE_NAME = { all: "Axial slice", axial: "Axial slice", coronal: "Coronal slice", sagittal: "Sagittal slice" };
  const FIRST_SLICE_AT = ["left", "back", "feet"];
  const LABEL_NAMES = ["", "left lung", "right lung", "infection"];
  const SLICE_TYPE = { axial: 0, coronal: 1, sagittal: 2 };
  const INFECTION = 3;
  const OF_SLICES = "[data-window], #show-infection, #show-lungs, #opacity";
  const QUIET = {
    logLevel: "error",
    backColor: [0, 0, 0, 1],
    fontColor: [1, 1, 1, 1],
    dragAndDropEnabled: false,
    showLegend: false,
    loadingText: "",
    clipPlaneHotKey: "",
    cycleClipPlaneHotKey: "",
    viewModeHotKey: "",
  };

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;
  }

  function fail(reason) {
    root.dataset.viewer = "failed";
    byId("viewer").hidden = true;
    byId("viewer-status").textContent = "The slices are shown as a picture: " + reason;
  }

  // Names of labels with their colours, and how solid each is, as NiiVue wants them.
  function colormapOf(colours, alphas) {
    const channel = (index) => [0, 1, 2, 3].map((label) => (label ? colours[label][index] : 0));
    return { R: channel(0), G: channel(1), B: channel(2), A: alphas, labels: LABEL_NAMES };
  }

  // With every window NiiVue also computes gradients, for renderings with light and shade. There are none here, and
  // without a graphics card gradients take seconds: a shader that copies takes their place.
  function leaveGradientsOut(viewer) {
    viewer.blurShader = viewer.sobelFirstOrderShader = viewer.passThroughShader;
  }

  function glassAround([red, green, blue]) {
    const levels = [0, 40, 190, 225, 255];
    // NiiVue passes over what is less solid than a hundredth: 3 of 255 is the clearest glass there is.
    const glass = [150, 175, 200];
    const channel = (index, solid) => levels.map((level) => (level < 200 ? glass[index] : solid));
    return { R: channel(0, red), G: channel(1, green), B: channel(2, blue), A: [0, 3, 3, 255, 255], I: levels };
  }

  // The labels alone in space: infection within lungs of glass. Made when it is first asked for, as it costs time
  // where the browser draws without a graphics card.
  class Rendering {
    constructor(settings) {
      this.settings = settings;
      this.canvas = byId("canvas-3d");
    }

    async start() {
      this.niivue = new niivue.Niivue({ ...QUIET, sliceType: niivue.SLICE_TYPE.RENDER, isOrientCube: true });
      await this.niivue.attachToCanvas(this.canvas);
      leaveGradientsOut(this.niivue);
      const url = bytesOf(this.settings.labels);
      // As a label map NiiVue would draw the lungs solid. As levels from 0 to 3 they can be glass; what lies between
      // two labels at a border passes through glass too, so that only infection is solid.
      this.niivue.addColormap("glass", glassAround(this.settings.colours[INFECTION]));
      const options = { url, name: "labels.nii.gz", colormap: "glass", cal_min: 0, cal_max: INFECTION };
      const labels = await niivue.NVImage.loadFromUrl(options);
      labels.hdr.intent_code = 0;
      this.niivue.addVolume(labels);
      this.niivue.setRenderAzimuthElevation(180, 10);
      this.niivue.setScale(1.4);
    }
  }

  class Viewer {
    constructor(settings) {
      this.settings = settings;
      this.planes = "all";
      this.showsInfection = true;
      this.showsLungs = false;
      this.canvas = byId("canvas");
      this.niivue = new niivue.Niivue({
        ...QUIET,
        crosshairColor: [1, 0.85, 0.2, 0.55],
        crosshairWidthUnit: "mm",
        crosshairWidth: 0.6,
        crosshairGap: 12,
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        showAllOrientationMarkers: true,
        dragMode: niivue.DRAG_MODE.windowing,
        onLocationChange: (place) => this.tellPlace(place),
      });
    }

    async start() {
      byId("viewer").hidden = false;
      await this.niivue.attachToCanvas(this.canvas);
      leaveGradientsOut(this.niivue);
      this.scan = await this.read("scan", this.settings.windows.lung);
      this.labels = await this.read("labels", [0, 3]);
      this.labels.opacity = byId("opacity").value / 100;
      this.labels.setColormapLabel(this.colormap());
      // NiiVue computes its textures anew with every volume that is added: once is enough.
      this.niivue.volumes = [this.scan];
      this.niivue.addVolume(this.labels);
      await this.setPlanes("all");
      this.jump(this.settings.start_mm);
    }

    read(name, [cal_min, cal_max]) {
      const url = bytesOf(this.settings[name]);
      return niivue.NVImage.loadFromUrl({ url, name: name + ".nii.gz", cal_min, cal_max });
    }

    colormap() {
      const shown = [false, this.showsLungs, this.showsLungs, this.showsInfection];
      return colormapOf(this.settings.colours, shown.map((is) => (is ? 255 : 0)));
    }

    // Only the labels: the scan's textures stay.
    redrawLabels() {
      this.labels.opacity = byId("opacity").value / 100;
      this.labels.setColormapLabel(this.colormap());
      this.niivue.refreshLayers(this.labels, 1);
      this.niivue.drawScene();
      press("#show-infection", this.showsInfection);
      press("#show-lungs", this.showsLungs);
    }

    setWindow(name) {
      [this.scan.cal_min, this.scan.cal_max] = this.settings.windows[name];
      this.niivue.updateGLVolume();
      for (const button of document.querySelectorAll("[data-window]")) press(button, button.dataset.window === name);
    }

    async setPlanes(name) {
      this.planes = name;
      byId("stage-3d").hidden = name !== "render";
      byId("stage").hidden = name === "render";
      if (name === "render") await this.render();
      else if (name === "all") this.niivue.setCustomLayout(layoutFor(this.canvas));
      else {
        this.niivue.clearCustomLayout();
        this.niivue.setSliceType(SLICE_TYPE[name]);
      }
      for (const button of document.querySelectorAll("[data-planes]")) press(button, button.dataset.planes === name);
      const axis = SLICE_AXIS[name];
      byId("slice").disabled = axis === undefined;
      for (const control of document.querySelectorAll(OF_SLICES)) control.disabled = name === "render";
      byId("slice-name").textContent = SLICE_NAME[name] || "Slice";
      if (axis !== undefined) byId("slice").max = this.scan.dimsRAS[axis + 1];
      if (axis !== undefined) this.niivue.createOnLocationChange();
    }

    async render() {
      if (!this.rendering) {
        this.rendering = new Rendering(this.settings);
        await this.rendering.start();
        root.dataset.rendering = "drawn";
      }
    }

    jump(mm) {
      this.niivue.scene.crosshairPos = this.niivue.mm2frac(mm);
      this.niivue.drawScene();
      this.niivue.createOnLocationChange();
    }

    setSlice(number) {
      const voxel = Array.from(this.niivue.frac2vox(this.niivue.scene.crosshairPos));
      voxel[SLICE_AXIS[this.planes]] = Math.min(Math.max(number, 1), Number(byId("slice").max)) - 1;
      this.niivue.scene.crosshairPos = this.niivue.vox2frac(voxel);
      this.niivue.drawScene();
      this.niivue.createOnLocationChange();
    }

    // In the numbering of the scan itself, which may have more slices than are shown.
    sliceOfScan(axis, voxel) {
      const all = this.settings.slices[axis];
      return Math.floor(((Math.round(voxel) + 0.5) * all) / this.scan.dimsRAS[axis + 1]) + 1 + " of " + all;
    }

    tellPlace(place) {
      if (!this.labels) return;
      const axis = SLICE_AXIS[this.planes];
      const slider = byId("slice");
      if (axis !== undefined) slider.value = Math.round(place.vox[axis]) + 1;
      const [hu, label] = place.values.map((one) => one.value);
      const [low, high] = this.settings.range_hu;
      const density = hu <= low ? low + " HU or less" : hu >= high ? high + " HU or more" : Math.round(hu) + " HU";
      const parts = [
        axis === undefined ? "" : this.sliceOfScan(axis, place.vox[axis]) + " from the " + FIRST_SLICE_AT[axis],
        density.replace("-", "\u2212"),
        LABEL_NAMES[Math.round(label)] || "",
      ];
      byId("place").textContent = parts.filter(Boolean).join(" · ");
    }
  }

  // All planes: a large axial slice, and beside or below it the others.
  function layoutFor(canvas) {
    const { AXIAL, CORONAL, SAGITTAL } = niivue.SLICE_TYPE;
    const tile = (sliceType, left, top, width, height) => ({ sliceType, position: [left, top, width, height] });
    if (canvas.clientWidth > 1.1 * canvas.clientHeight)
      return [tile(AXIAL, 0, 0, 0.6, 1), tile(CORONAL, 0.6, 0, 0.4, 0.5), tile(SAGITTAL, 0.6, 0.5, 0.4, 0.5)];
    return [tile(AXIAL, 0, 0, 1, 0.55), tile(CORONAL, 0, 0.55, 0.5, 0.45), tile(SAGITTAL, 0.5, 0.55, 0.5, 0.45)];
  }

  function press(button, isPressed) {
    (typeof button === "string" ? document.querySelector(button) : button).setAttribute("aria-pressed", String(isPressed));
  }

  function connect(viewer) {
    const on = (selector, event, action) => {
      for (const element of document.querySelectorAll(selector)) element.addEventListener(event, () => action(element));
    };
    const toggle = (what) => {
      viewer[what] = !viewer[what];
      viewer.redrawLabels();
    };
    on("[data-planes]", "click", (button) => viewer.setPlanes(button.dataset.planes));
    on("[data-window]", "click", (button) => viewer.setWindow(button.dataset.window));
    on("#show-infection", "click", () => toggle("showsInfection"));
    on("#show-lungs", "click", () => toggle("showsLungs"));
    on("#opacity", "input", () => viewer.redrawLabels());
    on("#slice", "input", (slider) => viewer.setSlice(Number(slider.value)));
    on("[data-mm]", "click", (button) => {
      if (viewer.planes === "render") viewer.setPlanes("all");
      viewer.jump(button.dataset.mm.split(",").map(Number));
      byId("viewer").scrollIntoView();
      viewer.canvas.focus({ preventScroll: true });
    });
    const slices = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    const keys = {
      l: () => viewer.setWindow("lung"),
      s: () => viewer.setWindow("soft"),
      i: () => toggle("showsInfection"),
    };
    // Before NiiVue, whose own keys are many and easily hit.
    for (const event of ["keydown", "keyup"])
      window.addEventListener(event, (pressed) => {
        if (pressed.target !== viewer.canvas) return;
        pressed.stopImmediatePropagation();
        if (event === "keyup" || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
        const step = slices[pressed.key];
        if (step && viewer.planes !== "render") viewer.setSlice(Number(byId("slice").value) + step);
        else if (keys[pressed.key]) keys[pressed.key]();
        else return;
        pressed.preventDefault();
      }, true);
    window.addEventListener("resize", () => viewer.setPlanes(viewer.planes));
  }

  // The share of pixels that are not background, read in the turn in which they were drawn.
  function drawnShare(viewer) {
    viewer.niivue.drawScene();
    const gl = viewer.niivue.gl;
    const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
    gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    let drawn = 0;
    for (let at = 0; at < pixels.length; at += 4) if (pixels[at] + pixels[at + 1] + pixels[at + 2] > 0) drawn += 1;
    return (4 * drawn) / pixels.length;
  }

  async function main() {
    root.dataset.viewer = "starting";
    if (!document.createElement("canvas").getContext("webgl2")) {
      fail("this browser has no WebGL 2 here.");
      return;
    }
    byId("viewer-status").textContent = "The viewer is starting …";
    const viewer = new Viewer(JSON.parse(byId("viewer-settings").textContent));
    try {
      await viewer.start();
    } catch (error) {
      fail("the viewer could not start (" + error.message + ").");
      return;
    }
    const share = drawnShare(viewer);
    if (share === 0) {
      fail("the viewer drew nothing.");
      return;
    }
    connect(viewer);
    for (const element of document.querySelectorAll(".jump")) element.hidden = false;
    byId("viewer-status").textContent = "";
    root.dataset.drawn = share.toFixed(3);
    root.dataset.seconds = (performance.now() / 1000).toFixed(1);
    root.dataset.viewer = "drawn";
  }

  main();
})();
